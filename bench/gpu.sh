#!/usr/bin/env bash
# Verifies and times the CUDA backend, unattended, on a machine with a GPU and without Node or a network: unpacks
# out/gpu-bundle.tar.xz (npm run bundle:gpu) where it lies, then does what is asked for until the time is up. A step that fails or takes
# too long is reported and the rest goes on. It ends with a short table; the exit code is 0 when everything passed.
#
#   bench/gpu.sh [verify|sanitize|bench|all] [options]
#     verify      the op, layer, model and optimizer suites on the device; outputs at full size against PyTorch in f64
#     sanitize    compute-sanitizer memcheck, racecheck, synccheck, initcheck on small runs of every kernel
#     bench       diffit bench beside PyTorch on the same shapes, in turns, and the ratios
#   --out DIR         where results go (default: $OUT, else out/gpu): table.md, steps.tsv, summary.json, results.tar.gz
#   --seconds N       for everything together (default 570)
#   --device NAME     cuda (default); cpu and cuda-emulated for a dry run, on which nothing is sanitized
#   --groups "A B"    of bench (default: copy attention gemm sampler conv train model block)
#   --rounds N        turns of the first four (default 2)
#   --quick           the smallest sizes of everything
set -uo pipefail
cd "$(dirname "$0")/.."

what=all out=${OUT:-out/gpu} seconds=570 device=cuda groups="copy attention gemm sampler conv train model block" rounds=2 quick=
while [[ $# -gt 0 ]]; do
  case $1 in
    verify | sanitize | bench | all) what=$1 ;;
    --quick) quick=--quick ;;
    --out | --seconds | --device | --groups | --rounds)
      [[ $# -gt 1 ]] || { echo "error: $1 needs a value." >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    *) echo "error: unknown argument $1; see the head of bench/gpu.sh." >&2; exit 2 ;;
  esac
  shift
done
[[ $seconds =~ ^[0-9]+$ && $rounds =~ ^[1-9]$ ]] || { echo "error: --seconds and --rounds are numbers." >&2; exit 2; }

started=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/results"
logs=$work/results
steps=$logs/steps.tsv
printf 'step\tresult\tseconds\n' > "$steps"
export DIFFIT_TEST_DEVICES=$device TAP_TIMEOUT=240

left() { echo $((seconds - (SECONDS - started))); }

# What there is so far, where it survives this script: few files with plain names.
keep() {
  tar -czf "$out/results.tar.gz" -C "$work" results
  cp "$steps" "$out/steps.tsv"
}

# record NAME RESULT SECONDS
record() {
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" >> "$steps"
  echo "$1: $2 (${3} s)"
}

# step NAME LIMIT COMMAND...: runs it with its output in NAME.log; the exit code is the command's.
step() {
  local name=$1 limit=$2 begun=$SECONDS code
  shift 2
  [[ $(left) -lt $limit ]] && limit=$(left)
  if [[ $limit -lt 5 ]]; then
    record "$name" "skipped, no time left" 0
    return 1
  fi
  timeout -k 5 "$limit" "$@" > "$logs/$name.log" 2>&1
  code=$?
  case $code in
    0) record "$name" ok $((SECONDS - begun)) ;;
    124 | 137) record "$name" "FAILED: over its limit of $limit s" $((SECONDS - begun)) ;;
    *) record "$name" "FAILED: $(grep -vE '^\s*$' "$logs/$name.log" | tail -1 | cut -c1-160)" $((SECONDS - begun)) ;;
  esac
  keep
  return $code
}

# ---- unpack -----------------------------------------------------------------------------------------------------
bundle=out/gpu-bundle.tar.xz
if [[ -f $bundle ]]; then
  if command -v xz > /dev/null; then tar -xJf "$bundle"; else python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(".")' "$bundle"; fi ||
    { echo "error: $bundle could not be unpacked." >&2; exit 1; }
  export PATH="$PWD/out:$PATH"
fi
command -v node > /dev/null || { echo "error: there is no node and no $bundle." >&2; exit 1; }
diffit() { node --import=tsx lib/cli/main.ts "$@"; }
export -f diffit

diffit info --json > "$logs/info.json" || { cat "$logs/info.json"; exit 1; }
cp out/bundle.json "$logs/" 2> /dev/null
{ nvidia-smi -q; nvcc --version; python3 --version; } > "$logs/machine.txt" 2>&1
if [[ $device == cuda ]]; then
  reason=$(node -e 'const {devices}=JSON.parse(require("fs").readFileSync(process.argv[1]));const c=devices.find((d)=>d.name==="cuda");if(!c.available)console.log(c.reason)' "$logs/info.json")
  [[ -z $reason ]] || { echo "error: no CUDA device: $reason" >&2; record info "FAILED: $reason" 0; keep; exit 1; }
fi
torch=$(python3 -c 'import torch; print(torch.__version__)' 2> /dev/null)
torch_device=${device/cuda-emulated/cpu}
[[ -n $torch ]] || echo "There is no PyTorch here: nothing is compared with it."
dtypes="bf16 f32 f16"
[[ $device == cuda ]] || dtypes=f32

# ---- verify -----------------------------------------------------------------------------------------------------
verify() {
  local suites=(test/ops/*.test.ts test/nn/*.test.ts test/optim/*.test.ts test/random.test.ts test/autograd.test.ts test/models/*.test.ts test/diffusion/*.test.ts test/train/precision.test.ts test/native/replay.test.ts)
  [[ -z $quick ]] || suites=(test/ops/errors.test.ts test/nn/attention.test.ts)
  local begun=$SECONDS limit=240 parallel=$(($(nproc) / 2))
  [[ $(left) -gt $limit ]] || limit=$(left)
  # shellcheck disable=SC2016
  printf '%s\n' "${suites[@]}" | xargs -P "$((parallel > 6 ? 6 : parallel > 0 ? parallel : 1))" -I{} bash -c '
    name=$(basename "$1" .test.ts) && timeout -k 5 "$3" node --import=tsx "$1" > "$2/suite-$name.tap" 2>&1; echo $? > "$2/suite-$name.code"' _ {} "$logs" "$limit"
  local passed=0 failed=0 suite name code
  # "ok" and "not ok" that stand for single checks are those without subtests below them.
  for suite in "${suites[@]}"; do
    name=suite-$(basename "$suite" .test.ts)
    code=$(cat "$logs/$name.code" 2> /dev/null || echo none)
    passed=$((passed + $(grep -cE '^ +ok [0-9]+ - ' "$logs/$name.tap")))
    [[ $code == 0 ]] && continue
    failed=$((failed + 1))
    record "$name" "FAILED: $([[ $code == 124 ]] && echo "over its limit" || grep -E '^ +not ok' "$logs/$name.tap" | tail -1 | sed 's/^ *//' | cut -c1-160)" 0
  done
  rm -f "$logs"/suite-*.code
  if [[ $failed == 0 ]]; then record suites "ok: $passed checks" $((SECONDS - begun)); else record suites "FAILED: $failed suites; $passed checks passed" $((SECONDS - begun)); fi
  keep
  for dtype in $dtypes; do
    for group in attention gemm conv; do
      step "save-$group-$dtype" 60 node --import=tsx lib/cli/main.ts bench "$group" --device "$device" --dtype "$dtype" $quick --save "$work/$group.safetensors" || continue
      [[ -z $torch ]] || step "verify-$group-$dtype" 60 python3 bench/peers/verify.py "$work/$group.safetensors" --device "$torch_device" --out "$logs/verify-$group-$dtype.json"
      rm -f "$work/$group.safetensors"
    done
  done
}

# ---- sanitize ---------------------------------------------------------------------------------------------------
# Forward and backward of every kernel on small sizes, XL/2's width of heads among them.
exercises() {
  for dtype in f32 bf16; do
    for group in attention gemm conv train; do echo "$group-$dtype bench $group --device cuda --dtype $dtype --quick"; done
    echo "heads72-$dtype bench attention --device cuda --dtype $dtype --only attention/8x8/b2h16d72 --save $work/$dtype.safetensors"
    echo "windows-$dtype bench attention --device cuda --dtype $dtype --only /4x4/b2h4d64 --save $work/w$dtype.safetensors"
  done
}
sanitize() {
  local tool
  if [[ $device != cuda ]] || ! command -v compute-sanitizer > /dev/null; then
    record sanitize "skipped: $([[ $device == cuda ]] && echo "there is no compute-sanitizer" || echo "the device is $device")" 0
    return
  fi
  for tool in memcheck racecheck synccheck initcheck; do
    local begun=$SECONDS limit=150
    [[ $(left) -gt $limit ]] || limit=$(left)
    if [[ $limit -lt 20 ]]; then
      record "sanitize-$tool" "skipped, no time left" 0
      continue
    fi
    # shellcheck disable=SC2016
    exercises | xargs -P 4 -I{} bash -c '
      set -- $4 "$1" "$2" "$3"; name=$1; shift; tool=${*: -3:1} logs=${*: -2:1} limit=${*: -1}; set -- "${@:1:$#-3}"
      timeout -k 5 "$limit" compute-sanitizer --tool "$tool" --target-processes application-only --error-exitcode 9 --print-limit 20 \
        node --import=tsx lib/cli/main.ts "$@" > "$logs/sanitize-$tool-$name.log" 2>&1
      echo "$name $?" >> "$logs/sanitize-$tool.codes"' _ "$tool" "$logs" "$limit" {}
    local bad
    bad=$(awk '$2 != 0 { printf "%s%s (exit %s)", sep, $1, $2; sep = ", " }' "$logs/sanitize-$tool.codes")
    if [[ -z $bad ]]; then record "sanitize-$tool" "ok: $(wc -l < "$logs/sanitize-$tool.codes") runs clean" $((SECONDS - begun)); else record "sanitize-$tool" "FAILED: $bad" $((SECONDS - begun)); fi
    keep
  done
}

# ---- bench ------------------------------------------------------------------------------------------------------
# measure GROUP ROUND SECONDS: ours, then PyTorch's, each at most so long.
measure() {
  local group=$1 round=$2 limit=$3 dtype=${dtypes%% *} name=$1-$2
  step "bench-$name" $((limit + 30)) node --import=tsx lib/cli/main.ts bench "$group" --device "$device" --dtype "$dtype" $quick --limit "$limit" --out "$logs/diffit-$name.json"
  [[ -n $torch ]] || return
  local more=()
  # flex_attention compiles for seconds at every shape: once, and at the telling shapes.
  [[ $group != attention ]] || more=(--except flex)
  step "peers-$name" $((limit + 60)) python3 bench/peers/run.py --specs "$logs/specs-$group.json" --device "$torch_device" --dtype "$dtype" $quick --limit "$limit" "${more[@]}" --out "$logs/torch-$name.json"
}
bench() {
  local group round dtype=${dtypes%% *}
  for group in $groups; do
    diffit bench "$group" --device "$device" --dtype "$dtype" $quick --list --json > "$logs/specs-$group.json"
  done
  for ((round = 1; round <= rounds; round++)); do
    for group in $groups; do
      case $group in
        copy | attention | gemm) measure "$group" "$round" 40 ;;
        sampler | conv) [[ $round -gt 1 && $group == conv ]] || measure "$group" "$round" 60 ;;
        *) [[ $round -gt 1 ]] || measure "$group" "$round" 60 ;;
      esac
    done
    if [[ $round == 1 && -n $torch && $groups == *attention* && $device == cuda ]]; then
      step peers-flex 170 python3 bench/peers/run.py --specs "$logs/specs-attention.json" --device "$torch_device" --dtype "$dtype" $quick --limit 140 --implementations flex --out "$logs/torch-flex.json" \
        --only attention/32x32/b8h16d72 --only attention/16x16/b32h16d72 --only attention/32x32/4x4/b32h16d72 --only attention/64x64/8x8/b32h16d72
    fi
  done
  step compare 60 node --import=tsx bench/compare.ts --markdown "$out/table.md" --json "$out/summary.json" "$logs"/diffit-*.json $([[ -z $torch ]] || ls "$logs"/torch-*.json)
}

case $what in
  all) verify; bench; sanitize ;;
  *) "$what" ;;
esac
keep

echo
column -t -s $'\t' < "$steps" 2> /dev/null || cat "$steps"
[[ ! -f $out/table.md || $what == verify || $what == sanitize ]] || { echo; sed '/^###/,$d' "$out/table.md"; }
failed=$(grep -c 'FAILED' "$steps")
echo "$(grep -cE $'\t(ok|ok:.*)\t' "$steps") steps passed, $failed failed, $(grep -c 'skipped' "$steps") skipped; $((SECONDS - started)) s; details in $out"
[[ $failed == 0 ]]
