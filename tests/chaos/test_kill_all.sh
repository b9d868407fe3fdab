#!/usr/bin/env bash
# A few jobs whose every process is killed, and started again, on a tiny model.
# timeout: 600
exec bash "$(dirname "$0")/kill_all.sh"
