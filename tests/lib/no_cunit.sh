#!/usr/bin/env bash
# Stands in for the unit tests of `make check` where configure found no CUnit.
echo "CUnit is not installed, so the unit tests were not built (Debian: libcunit1-dev, Spack: cunit, module: CUnit)"
exit 77
