#!/usr/bin/env bash
# Builds the CUDA plug-in, its tests and the trainer, and finds out on this machine's GPU what is
# true: tests, compute-sanitizer, a training run beside the CPU's, PyTorch's speed. Writes JSON.
#
#   tools/gpu_check.sh OUT [GOOGLETEST]     check; GOOGLETEST: folder with GoogleTest's sources
#   tools/gpu_check.sh --pack               copy the system's GoogleTest sources (Debian: package
#                                           googletest) to .gpu-check/googletest, where the check
#                                           looks for them on a machine without the package
#
# Needs nvcc 13, CMake, Ninja, g++; python3 with PyTorch for the comparison. No service library, no
# OpenBLAS, no network. OUT gets gpu_check.json and the logs. Exit 0: everything ran and passed;
# 1: something failed; 3: no GPU here: what builds was built, nothing was proved.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
packed=.gpu-check/googletest
if [ "${1:-}" = --pack ]; then
  mkdir -p .gpu-check && rm -rf "$packed" && cp -r /usr/src/googletest/googletest "$packed" &&
    cp /usr/src/googletest/LICENSE "$packed" 2>/dev/null
  [ -f "$packed/CMakeLists.txt" ] && exit 0
  printf 'no GoogleTest sources in /usr/src/googletest; install the package googletest\n' >&2
  exit 1
fi
out=${1:?usage: tools/gpu_check.sh OUT [GOOGLETEST] | --pack}
gtest=${2:-}
if [ -z "$gtest" ] && [ -d "$packed" ]; then gtest=$packed; fi
if [ -n "$gtest" ]; then gtest=$(cd "$gtest" && pwd) || exit 1; fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
build=$PWD/build/gpu-check
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
passed=0 failed=0 skipped=0 sanitizer='"not run"' training=null peers=null layers=null operations=null
build_seconds=null

write_json() { # status
  cat >"$out/gpu_check.json" <<JSON
{
  "status": "$1",
  "date": "$started",
  "seconds": $SECONDS,
  "commit": "$(git describe --always --dirty 2>/dev/null || echo unknown)",
  "device": "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1)",
  "nvcc": "$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')",
  "build_seconds": $build_seconds,
  "tests": {"passed": $passed, "failed": $failed, "skipped": $skipped},
  "compute_sanitizer": $sanitizer,
  "training_against_cpu": $training,
  "operations": $operations,
  "layer_steps": $layers,
  "pytorch": $peers
}
JSON
}
fail() { # message, exit code
  printf '%s\n' "$1" >&2
  write_json "$1"
  exit "$2"
}

command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
command -v nvcc >/dev/null || fail "nvcc not found" 1
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)
case $architecture in
  '') gpu=no architecture=90a ;;
  90 | 100 | 103 | 120 | 121) gpu=yes architecture=${architecture}a ;;
  *) gpu=yes ;;
esac
cmake -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O2 \
  -DNIBBLE_SERVICE=OFF -DNIBBLE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture-real" \
  -DNIBBLE_GTEST_SOURCE_DIR="$gtest" >"$out/configure.log" 2>&1 ||
  fail "configure failed, see configure.log" 1
before=$SECONDS
cmake --build "$build" --target nibble_cuda ops_test cuda_matmul_test nibble-trainer nibble-device-bench >"$out/build.log" 2>&1 ||
  fail "build failed, see build.log" 1
build_seconds=$((SECONDS - before))

export NIBBLE_CUDA_PLUGIN=$build/bin/libnibble_cuda.so
"$build/tests/ops/ops_test" --gtest_filter='Cuda*:Device*' >"$out/tests.log" 2>&1
"$build/tests/ops/cuda_matmul_test" >>"$out/tests.log" 2>&1
count() { grep -c "^\[ *$1 \] .*(" "$out/tests.log"; }
passed=$(count OK) failed=$(count FAILED) skipped=$(grep -c '^\[  SKIPPED \] .*(' "$out/tests.log")
[ "$gpu" = yes ] || fail "no GPU on this machine; plug-in, tests and trainer build for sm_$architecture" 3

if command -v compute-sanitizer >/dev/null; then
  sanitizer='"clean"'
  compute-sanitizer --error-exitcode 9 "$build/tests/ops/ops_test" \
    --gtest_filter='Cuda/Op.EqualsTheReference/*:Device*' >"$out/sanitizer.log" 2>&1 ||
    sanitizer='"errors, see sanitizer.log"'
fi

# 200 steps of each recipe on the CPU and on the GPU, the same data and seed.
work=$build/training
rm -rf "$work" && python3 tools/gpu_check/train_data.py "$work"
runs_failed=0
training='{'
for recipe in bf16 fp4_ms_paper fp4_fold8_e4m3; do
  for backend in cpu cuda; do
    timeout 240 "$build/bin/nibble-trainer" --config "$work/$recipe.json" \
      --dir "$work/$recipe-$backend" --backend $backend --quiet >"$out/train-$recipe-$backend.log" 2>&1
  done
  result=$(python3 tools/gpu_check/compare_curves.py "$work/$recipe-cpu" "$work/$recipe-cuda") ||
    runs_failed=1
  training+="\"$recipe\": ${result:-null}, "
done
training=${training%, }'}'

# Speed: our operations, PyTorch's, and what a layer of 7B shape adds to a step.
"$build/bin/nibble-device-bench" --backend cuda >"$out/operations.json" 2>"$out/operations.log" &&
  operations=$(cat "$out/operations.json")
python3 tools/gpu_check/torch_peers.py >"$out/pytorch.json" 2>"$out/pytorch.log" &&
  peers=$(cat "$out/pytorch.json")
if [ $SECONDS -lt 300 ]; then
  python3 tools/gpu_check/layer_steps.py "$build/bin/nibble-trainer" "$work/tokens" "$work" \
    >"$out/layer_steps.json" 2>"$out/layer_steps.log" && layers=$(cat "$out/layer_steps.json")
fi

status=passed
if [ "$failed" -gt 0 ] || [ "$passed" -eq 0 ] || [ "$runs_failed" = 1 ] ||
  [[ $sanitizer == *errors* ]]; then
  status=failed
fi
write_json $status
printf '%s: %s tests passed, %s failed, %s skipped; compute-sanitizer: %s; training: %s\n' \
  $status "$passed" "$failed" "$skipped" "$sanitizer" "$training"
[ $status = passed ]
