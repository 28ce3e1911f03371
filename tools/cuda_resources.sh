#!/usr/bin/env bash
# What each kernel of the CUDA plug-in costs, as the assembler reports it: registers, spills, shared
# memory, and the wall time to compile its file. Needs nvcc, no GPU.
#
#   tools/cuda_resources.sh [ARCHITECTURE...]     default: 90a 100a 120a
#
# Prints Markdown, as docs/performance/cuda-resources.md holds it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
[ $# -gt 0 ] || set -- 90a 100a 120a
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for architecture in "$@"; do
  for file in kernels/cuda/*.cu; do
    began=$(date +%s%N)
    nvcc -std=c++20 -O3 --fmad=false -diag-suppress=2810 -I. -Xptxas=-v -Xcompiler=-O2 \
      -gencode "arch=compute_$architecture,code=sm_$architecture" -cubin -o "$work/out.cubin" "$file" \
      2>"$work/ptxas"
    ended=$(date +%s%N)
    awk -v file="$(basename "$file")" -v milliseconds=$(((ended - began) / 1000000)) '
      /Compiling entry function/ { split($0, part, "\047"); name = part[2] }
      /bytes spill stores/ { stores = $5; loads = $9; stack = $1 }
      /Used [0-9]+ registers/ {
        shared = 0
        if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH - 11)
        match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
        print "kernel", file, name, registers, stores + loads, stack, shared
      }
      END { print "file", file, milliseconds }' "$work/ptxas" >>"$work/rows.$architecture"
  done
done

printf '# Resources of the CUDA kernels\n\nWritten by `tools/cuda_resources.sh`; %s; compiled for' \
  "$(nvcc --version | sed -n 's/^Cuda compilation tools, //p')"
for architecture in "$@"; do printf ' sm_%s' "$architecture"; done
printf '.\nStatic figures: no GPU took part.\n'
for architecture in "$@"; do
  printf '\n## sm_%s\n\n| file | kernel | registers | spilled bytes | stack bytes | static shared bytes |\n' "$architecture"
  printf '| --- | --- | --- | --- | --- | --- |\n'
  awk '$1 == "kernel" { print $2, $3, $4, $5, $6, $7 }' "$work/rows.$architecture" |
    while read -r file name registers spilled stack shared; do
      plain=$(printf '%s' "$name" | c++filt | sed 's/nibble::cuda:://g; s/(anonymous namespace):://g; s/^void //; s/([A-Za-z_:]*)\([0-9]\)/\1/g; s/(.*//')
      printf '| `%s` | `%s` | %s | %s | %s | %s |\n' "$file" "$plain" "$registers" "$spilled" "$stack" "$shared"
    done
done
printf '\n## Wall seconds to compile\n\nOne file and one architecture at a time, beside whatever else this machine was doing.\n\n| file |'
for architecture in "$@"; do printf ' sm_%s |' "$architecture"; done
printf '\n| --- |'
for architecture in "$@"; do printf ' --- |'; done
printf '\n'
for file in kernels/cuda/*.cu; do
  name=$(basename "$file")
  printf '| `%s` |' "$name"
  for architecture in "$@"; do
    awk -v name="$name" '$1 == "file" && $2 == name { printf " %.1f |", $3 / 1000 }' "$work/rows.$architecture"
  done
  printf '\n'
done
