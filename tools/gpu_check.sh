#!/usr/bin/env bash
# Builds the CUDA plug-in and its tests, runs them on this machine's GPU, checks them with
# compute-sanitizer, and writes what happened as JSON.
#
#   tools/gpu_check.sh OUT [googletest source folder]
#
# Needs nvcc 13, CMake, Ninja, g++ and a BLAS for the CPU reference (pkg-config openblas). GoogleTest comes
# from the system, or from the sources named. No service library, no network. Exit 0: every test ran
# and passed; 1: something failed; 3: no GPU here, nothing was proved.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?usage: tools/gpu_check.sh OUT [googletest source folder]}
gtest=${2:-}
mkdir -p "$out"
build=build/gpu-check
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)

fail() {
  printf '%s\n' "$1" >&2
  write_json "$1" 0 0 0 skipped
  exit "$2"
}

# write_json status passed failed skipped sanitizer
write_json() {
  cat >"$out/gpu_check.json" <<EOF
{
  "status": "$1",
  "date": "$started",
  "commit": "$(git describe --always --dirty 2>/dev/null || echo unknown)",
  "device": "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1)",
  "nvcc": "$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')",
  "tests": {"passed": $2, "failed": $3, "skipped": $4},
  "compute_sanitizer": "$5"
}
EOF
}

command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
command -v nvcc >/dev/null || fail "nvcc not found" 1
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)
[ -n "$architecture" ] || fail "no GPU on this machine" 3
case $architecture in
  90 | 100 | 103 | 120 | 121) architecture=${architecture}a ;;
esac
cmake -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNIBBLE_SERVICE=OFF -DNIBBLE_CUDA=ON \
  -DCMAKE_CUDA_ARCHITECTURES="$architecture-real" -DNIBBLE_GTEST_SOURCE_DIR="$gtest" \
  >"$out/configure.log" 2>&1 || fail "configure failed, see configure.log" 1
cmake --build "$build" --target nibble_cuda ops_test >"$out/build.log" 2>&1 ||
  fail "build failed, see build.log" 1

export NIBBLE_CUDA_PLUGIN=$PWD/$build/bin/libnibble_cuda.so
"$build/tests/ops/ops_test" --gtest_filter='Cuda*:Device*' >"$out/tests.log" 2>&1
count() { grep -c "^\[ *$1 \] .*(" "$out/tests.log"; }
passed=$(count OK) failed=$(count FAILED) skipped=$(count SKIPPED)

sanitizer=absent
if command -v compute-sanitizer >/dev/null; then
  sanitizer=clean
  compute-sanitizer --error-exitcode 9 "$build/tests/ops/ops_test" \
    --gtest_filter='Cuda/Op.EqualsTheReference/*:Device*' >"$out/sanitizer.log" 2>&1 || sanitizer=errors
fi
status=passed
{ [ "$failed" -gt 0 ] || [ "$passed" -eq 0 ] || [ "$sanitizer" = errors ]; } && status=failed
write_json "$status" "$passed" "$failed" "$skipped" "$sanitizer"
printf '%s passed, %s failed, %s skipped; compute-sanitizer: %s\n' "$passed" "$failed" "$skipped" "$sanitizer"
[ "$status" = passed ]
