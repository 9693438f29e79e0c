#!/usr/bin/env bash
# Does out/gpu-bundle.tar.xz (npm run bundle:gpu) work where there is no Node, no network and no xz? Clones the committed tree, unpacks
# the bundle there with none of these on the PATH, and runs bench/gpu.sh on the CPU, on the emulator, and on "cuda", which must end at
# the first call of CUDA with one sentence (or go on, where there is a GPU).
#
#   scripts/dry-run-bundle.sh
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

git clone -q "$root" "$folder/tree"
mkdir "$folder/tree/out" "$folder/bin"
cp out/gpu-bundle.tar.xz "$folder/tree/out/"
# Every program of this machine but these; python3 as it is behind any shim.
for program in /bin/* /usr/bin/* /usr/local/bin/*; do
  case $(basename "$program") in node | npm | npx | xz | unxz | nvcc) ;; *) ln -sf "$program" "$folder/bin/" ;; esac
done
if command -v python3 > /dev/null; then ln -sf "$(python3 -c 'import sys; print(sys.executable)')" "$folder/bin/python3"; fi

# Without a network too, where a user may make a namespace.
network=()
unshare -rn true 2> /dev/null && network=(unshare -rn)
run() {
  echo "==> bench/gpu.sh $*"
  (cd "$folder/tree" && env -u OUT PATH="$folder/bin" "${network[@]}" bench/gpu.sh "$@")
}
run all --quick --device cpu --out "$folder/cpu"
[[ -x $folder/tree/out/node ]] || { echo "the bundle has no Node"; exit 1; }
emulator=build/Release/libdiffit_cuda_emulated.so
if [[ -f $emulator ]]; then
  cp "$emulator" "$folder/tree/build/Release/"
  run all --quick --device cuda-emulated --out "$folder/emulated"
fi
if run all --quick --out "$folder/cuda" 2>&1 | tee "$folder/said"; then
  echo "There is a GPU here: all of it ran."
else
  grep -q '^error: no CUDA device: .' "$folder/said" || { echo "expected a sentence about CUDA"; exit 1; }
fi
echo "The bundle works."
