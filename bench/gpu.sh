#!/usr/bin/env bash
# Verifies the CUDA backend on a machine with a GPU and without Node or a network: unpacks out/gpu-bundle.tar.xz, runs the
# operation suites on the device "cuda", and again under compute-sanitizer where there is one. Logs go to the folder given.
#
#   bench/gpu.sh [LOGS=out/gpu]       ends with "N passed, N failed" and exits non-zero when any check failed
#   DIFFIT_TEST_DEVICES=cpu bench/gpu.sh    a dry run without a GPU
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-out/gpu}
export DIFFIT_TEST_DEVICES=${DIFFIT_TEST_DEVICES:-cuda}
mkdir -p "$logs"
tar -xJf out/gpu-bundle.tar.xz
export PATH="$PWD/out:$PATH"

node --import=tsx lib/cli/main.ts info || exit 1

suites=(test/ops/*.test.ts test/nn/*.test.ts test/optim/*.test.ts test/random.test.ts test/autograd.test.ts test/models/*.test.ts)
passed=0 failed=0
# Lines "ok" and "not ok" that stand for single checks: those without subtests below them.
count() { grep -cE "^ +$1 [0-9]+ - " "$2" || true; }
for suite in "${suites[@]}"; do
  log="$logs/$(basename "$suite" .test.ts).tap"
  timeout 300 node --import=tsx "$suite" > "$log" 2>&1 || { failed=$((failed + 1)); echo "failed: $suite"; grep -E "^ *not ok" "$log" | head -5; }
  passed=$((passed + $(count ok "$log")))
done

if command -v compute-sanitizer > /dev/null && [[ $DIFFIT_TEST_DEVICES == cuda ]]; then
  for tool in memcheck racecheck synccheck; do
    log="$logs/sanitizer-$tool.txt"
    timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 9 node --import=tsx test/ops/fixtures.test.ts > "$log" 2>&1 ||
      { failed=$((failed + 1)); echo "failed: compute-sanitizer $tool"; }
    grep -E "ERROR SUMMARY|RACECHECK SUMMARY" "$log" || true
  done
fi
echo "$passed passed, $failed failed"
[[ $failed == 0 ]]
