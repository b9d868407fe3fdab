/* See http.h: the part that needs no library. */
#include "notice/http.h"

#include <stdlib.h>
#include <string.h>

gw_err gw_http_check_address(const char *address)
{
    static const char scheme[] = "http://";
    const char *host = address + sizeof scheme - 1;
    bool good = !strncmp(address, scheme, sizeof scheme - 1) && strlen(address) < 512;
    size_t name = good ? strcspn(host, ":/") : 0;
    for (const char *c = address; good && *c; c++) good = *c > ' ' && *c <= '~' && !strchr("@?#\"<>\\^`{|}", *c);
    if (good && host[0] == '[') name = strcspn(host, "]") + 1; /* IPv6 */
    good = good && name > 0 && name <= strlen(host);
    if (good && host[name] == ':') {
        size_t digits = strspn(host + name + 1, "0123456789");
        long port = digits > 0 && digits <= 5 ? strtol(host + name + 1, NULL, 10) : 0;
        good = port >= 1 && port <= 65535 && (!host[name + 1 + digits] || host[name + 1 + digits] == '/');
    } else if (good) {
        good = !host[name] || host[name] == '/';
    }
    if (!good) return gw_fail(GW_ERR_USAGE, "'%.80s' is not an address such as http://169.254.169.254", address);
    return GW_OK;
}
