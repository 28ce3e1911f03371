// SPDX-License-Identifier: Apache-2.0
//
// Matmul: row-major products through cuBLASLt.
//
// Purpose: one place that knows descriptors, layouts, heuristics and the workspace. FP32 products
// run without TF32; BF16 products accumulate in FP32. Thread-safety: thread-compatible. Ownership:
// owns the handle, the workspace and a plan per shape, so a warmed-up step allocates nothing.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "base/status.h"

namespace nibble::cuda {

struct MatmulShape {
  int64_t m, n, k;  // out (m, n) = op(a) (m, k) op(b) (k, n), all dense row-major
  bool transpose_a, transpose_b;
  bool bf16;  // operands are BF16 in memory, else FP32; out is FP32
  auto operator<=>(const MatmulShape&) const = default;
};

class Matmul {
 public:
  static Result<std::unique_ptr<Matmul>> Make();
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // out = op(a) op(b) + (accumulate ? out : 0). Device pointers. UNIMPLEMENTED when cuBLASLt has no
  // algorithm for the shape.
  Status Run(cudaStream_t stream, const MatmulShape& shape, const void* a, const void* b,
             bool accumulate, float* out);

  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

 private:
  struct Plan;
  Matmul() = default;
  Result<const Plan*> PlanOf(const MatmulShape& shape);

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<MatmulShape, std::unique_ptr<Plan>> plans_;
};

}  // namespace nibble::cuda
