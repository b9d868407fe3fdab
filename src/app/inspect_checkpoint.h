/* `godwit inspect` of checkpoints; see cmd_inspect.c. */
#ifndef GW_APP_INSPECT_CHECKPOINT_H
#define GW_APP_INSPECT_CHECKPOINT_H

#include "base/error.h"

/* Is `path` a folder, or does it look like a file of a checkpoint? */
bool gw_inspect_is_checkpoint(const char *path);
/* Prints what the checkpoint file, folder of checkpoints or OUTDIR at `path` holds, with `pages` also which pages. GW_ERR_VERIFY
 * (after printing) when something is damaged. */
GW_CHECK gw_err gw_inspect_checkpoint(const char *path, bool pages, bool json);

#endif
