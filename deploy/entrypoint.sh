#!/bin/sh
# Numba wants to write where it reads its cache, and fails at import where it may not: with a read-only
# root the kernels compiled into the image are copied to /tmp first.
set -eu
[ -d "$NUMBA_CACHE_DIR" ] || cp -R /opt/streamproc/numba-cache "$NUMBA_CACHE_DIR"
exec streamproc "$@"
