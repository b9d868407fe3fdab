#!/usr/bin/env bash
# Some seeds of the sweep over nodes.
# timeout: 900
exec bash "$(dirname "$0")/sweep.sh" -n 5
