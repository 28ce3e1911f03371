#!/usr/bin/env bash
# Builds the CUDA plug-in, its tests and benchmarks, and finds out on this machine's GPU what is
# true: the numbers of its tensor cores, tests, training beside the CPU's, speed beside PyTorch's and
# cuBLASLt's, memory. One JSON file, written anew after every stage.
#
#   tools/gpu_check.sh OUT [--only STAGE,...] [--gtest FOLDER]
#   tools/gpu_check.sh --pack     copy the system's GoogleTest sources (Debian: package googletest)
#                                 to .gpu-check/googletest, where the check looks for them
#   tools/gpu_check.sh --list     the stages, in order
#
# Needs nvcc 13, CMake, Ninja, g++ and python3, with PyTorch for the comparison. No service library,
# no OpenBLAS, no network. Ends within GPU_CHECK_SECONDS (570); every stage has a limit of its own,
# and what fails or is stopped is named in OUT/gpu_check.json while the rest goes on. Commands and
# output: OUT/gpu_check.log. Without GoogleTest's sources the tests are left out, and it says so.
# Exit 0: everything ran and passed; 1: something did not; 2: wrong usage; 3: no usable device.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --pack ]; then
  source=/usr/src/googletest
  packed=.gpu-check/googletest
  if [ ! -f "$source/googletest/CMakeLists.txt" ]; then
    printf 'no GoogleTest sources in %s; install the package googletest\n' "$source" >&2
    exit 1
  fi
  mkdir -p .gpu-check
  rm -rf "$packed"
  cp -r "$source/googletest" "$packed"
  if [ -f "$source/LICENSE" ]; then cp "$source/LICENSE" "$packed/"; fi
  exit 0
fi
if ! command -v python3 >/dev/null; then
  printf 'python3 not found: install it\n' >&2
  exit 1
fi
exec python3 tools/gpu_check/check.py "$@"
