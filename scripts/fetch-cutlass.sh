#!/bin/sh
# Prints the directories of CUTLASS's headers, which the CUDA library needs to be built (and only to be built): of $CUTLASS_DIR (a clone,
# its include directory or an installation's), else of build/cutlass, unpacked from the wheel nvidia-cutlass with pip. There are two: the
# convolutions' headers include one of CUTLASS's tools.
set -eu
version=4.2.0.0
root=$(cd "$(dirname "$0")/.." && pwd)

if [ -n "${CUTLASS_DIR:-}" ]; then
  for directory in "$CUTLASS_DIR/include" "$CUTLASS_DIR"; do
    for tools in "$directory/../tools/util/include" "$directory"; do
      if [ -f "$directory/cutlass/cutlass.h" ] && [ -f "$tools/cutlass/util/packed_stride.hpp" ]; then
        echo "$directory" "$tools"
        exit 0
      fi
    done
  done
  echo "CUTLASS_DIR is $CUTLASS_DIR, where there is no cutlass/cutlass.h with cutlass/util/packed_stride.hpp." >&2
  exit 1
fi

directory=$root/build/cutlass/$version
source=$directory/cutlass_library/source
if [ ! -f "$source/include/cutlass/cutlass.h" ] || [ ! -f "$source/tools/util/include/cutlass/util/packed_stride.hpp" ]; then
  rm -rf "$directory"
  mkdir -p "$directory"
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$directory" "nvidia-cutlass==$version" >&2 ||
    ! python3 -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.startswith(
        ("cutlass_library/source/include/", "cutlass_library/source/tools/util/include/"))])' \
      "$directory"/*.whl "$directory"; then
    rm -rf "$directory"
    echo "CUTLASS's headers are not here and pip could not fetch nvidia-cutlass $version: set CUTLASS_DIR to a clone of CUTLASS 4, or build with CUTLASS=0." >&2
    exit 1
  fi
fi
echo "$source/include" "$source/tools/util/include"
