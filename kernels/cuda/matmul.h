// SPDX-License-Identifier: Apache-2.0
//
// Matmul: row-major products through cuBLASLt.
//
// Purpose: one place that knows descriptors, layouts, scale modes, heuristics and the workspace.
// FP32 products run without TF32; the others accumulate in FP32. FP8 products promote their partial
// sums to FP32 (FAST_ACCUM 0) unless asked not to. Thread-safety: thread-compatible. Ownership:
// owns the handle, the workspace and a plan per shape and alignment, so a warmed-up step allocates
// nothing.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>

#include "base/status.h"

namespace nibble::cuda {

// Operands in memory. kE4M3, kE5M2: scaled by an FP32 vector along the output each (OUTER_VEC_32F,
// Hopper alone). kMxE4M3: an E8M0 scale per 32 elements of the sum. kNvE2M1: two codes a byte, an
// E4M3 scale per 16. Block scales lie as kernels/formats/scale_layout.h says (Blackwell).
enum class MatmulElem : uint8_t { kF32, kBf16, kE4M3, kE5M2, kMxE4M3, kNvE2M1 };

struct MatmulShape {
  int64_t m, n, k;  // out (m, n) = op(a) (m, k) op(b) (k, n), all dense row-major
  bool transpose_a, transpose_b;
  MatmulElem a = MatmulElem::kF32, b = MatmulElem::kF32;
  bool fast_accumulation = false;
  bool bf16_out = false;  // instead of FP32; not of FP32 operands
  auto operator<=>(const MatmulShape&) const = default;
};
// Narrow operands lie along the sum: transpose_a no, transpose_b yes.
constexpr bool IsNarrow(MatmulElem elem) {
  return elem != MatmulElem::kF32 && elem != MatmulElem::kBf16;
}
// What every pointer of a product is a multiple of, in bytes; from kMostAligned on all are alike.
struct MatmulAlignment {
  static constexpr uint32_t kMostAligned = 256;  // cuBLASLt's assumption when nothing is said
  uint32_t a = kMostAligned, b = kMostAligned, out = kMostAligned;
  auto operator<=>(const MatmulAlignment&) const = default;
};
constexpr uint32_t AlignmentOf(uintptr_t address) {
  const uintptr_t bits = address | MatmulAlignment::kMostAligned;
  return static_cast<uint32_t>(bits & (~bits + 1));
}
// Scaled by vectors along the output.
constexpr bool IsOuterFp8(MatmulElem elem) {
  return elem == MatmulElem::kE4M3 || elem == MatmulElem::kE5M2;
}
// Of narrow operands; m of a, n of b, or one per block.
struct MatmulScales {
  const void* a = nullptr;
  const void* b = nullptr;
};

class Matmul {
 public:
  static Result<std::unique_ptr<Matmul>> Make();
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // out = op(a) op(b) + (accumulate ? out : 0). Device pointers; views may begin at any element.
  // UNIMPLEMENTED when cuBLASLt has no algorithm for the shape. Hopper's have none with scale
  // vectors for long sums of few outputs (pytorch/ao issue 4582: K 9216, 256 by 3072): these go in
  // slices of the sum, each rounded to FP32 and added to the ones before.
  Status Run(cudaStream_t stream, const MatmulShape& shape, const void* a, const void* b,
             const MatmulScales& scales, bool accumulate, void* out);
  // Whether cuBLASLt has an algorithm on this device.
  bool Has(const MatmulShape& shape);
  // Whether it has one for the whole sum, and these places. `bf16_out` needs one: it is rounded
  // once.
  bool RunsWhole(const MatmulShape& shape, const void* a, const void* b, const void* out);

  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

 private:
  struct Plan;
  struct Key {
    MatmulShape shape;
    MatmulAlignment alignment;
    int64_t pitch;  // of narrow operands: from line to line, k of the whole product
    auto operator<=>(const Key&) const = default;
  };
  Matmul() = default;
  static Key KeyOf(const MatmulShape& shape, const void* a, const void* b, const void* out);
  Result<Plan*> PlanOf(const Key& key);
  // Terms to sum at a time; UNIMPLEMENTED when no number of them has algorithms.
  Result<int64_t> DepthOf(const Key& key);
  Status Launch(cudaStream_t stream, const Key& key, const void* a, const void* b,
                const MatmulScales& scales, bool accumulate, void* out);

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;  // nullptr: there is no algorithm
};

}  // namespace nibble::cuda
