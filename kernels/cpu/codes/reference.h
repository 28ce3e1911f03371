// SPDX-License-Identifier: Apache-2.0
//
// The reference path of a GEMM on codes: integer-valued FP32 operands multiplied by Gemm.
//
// Purpose: sums that are exact by construction, for any machine; the fast path must equal them bit
// for bit. The contraction is cut so that no FP32 partial sum passes 2^24; pieces are added as
// 32-bit integers. Thread-safety: the backend's one caller thread.
#pragma once

#include "base/status.h"
#include "kernels/cpu/codes/operand.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu::codes {

// Grown on demand, never shrunk.
struct ReferenceWorkspace {
  Buffer left, right, product, sums;
  int64_t size_bytes() const;
};

Status ReferenceCodeGemm(Backend& backend, ThreadPool& pool, const CodeGemm& gemm,
                         ReferenceWorkspace* workspace);

}  // namespace nibble::cpu::codes
