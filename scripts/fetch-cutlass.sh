#!/bin/sh
# Prints the directory of CUTLASS's headers, which the CUDA library needs to be built (and only to be built): $CUTLASS_DIR (a clone, or
# its include directory), else build/cutlass, unpacked from the wheel nvidia-cutlass with pip.
set -eu
version=4.2.0.0
root=$(cd "$(dirname "$0")/.." && pwd)

if [ -n "${CUTLASS_DIR:-}" ]; then
  for directory in "$CUTLASS_DIR/include" "$CUTLASS_DIR"; do
    if [ -f "$directory/cutlass/cutlass.h" ]; then
      echo "$directory"
      exit 0
    fi
  done
  echo "CUTLASS_DIR is $CUTLASS_DIR, where there is no include/cutlass/cutlass.h." >&2
  exit 1
fi

directory=$root/build/cutlass/$version
include=$directory/cutlass_library/source/include
if [ ! -f "$include/cutlass/cutlass.h" ]; then
  rm -rf "$directory"
  mkdir -p "$directory"
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$directory" "nvidia-cutlass==$version" >&2 ||
    ! python3 -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.startswith("cutlass_library/source/include/")])' \
      "$directory"/*.whl "$directory"; then
    rm -rf "$directory"
    echo "CUTLASS's headers are not here and pip could not fetch nvidia-cutlass $version: set CUTLASS_DIR to a clone of CUTLASS 4, or build with CUTLASS=0." >&2
    exit 1
  fi
fi
echo "$include"
