#!/usr/bin/env bash
# One job for each kind of trouble that sweep.sh knows, on a tiny model.
# timeout: 1500
exec bash "$(dirname "$0")/sweep.sh"
