// SPDX-License-Identifier: Apache-2.0
//
// The fast path of a GEMM on codes: pack both operands into panels, then tiles on the pool.
//
// Purpose: QuantizedGemm with path kFast; results equal ReferenceCodeGemm bit for bit.
// To time the parts: PackCodes (either side) and MultiplyCodes are the whole of FastCodeGemm; a
// benchmark that wants the product alone packs once and repeats MultiplyCodes.
// Thread-safety: the backend's one caller thread. Ownership: PackedCodes owns its memory; a
// CodeGemm borrows. Invariant: no result depends on how the work is cut.
#pragma once

#include "base/status.h"
#include "kernels/cpu/codes/kernels.h"
#include "kernels/cpu/codes/operand.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu::codes {

// One operand in panels, grown on demand, never shrunk.
struct PackedCodes {
  Buffer memory;
  int64_t depth = 0;  // padded
  int64_t panels = 0;
  int64_t panel_bytes = 0;
  int64_t spans = 0;  // bias entries per panel and lane
  int lanes = 0;
  int64_t bias_at = 0;  // byte offset of the biases

  const uint8_t* panel(int64_t i) const {
    return static_cast<const uint8_t*>(memory.data()) + i * panel_bytes;
  }
  const int32_t* bias(int64_t i) const {
    return reinterpret_cast<const int32_t*>(static_cast<const uint8_t*>(memory.data()) + bias_at) +
           i * spans * lanes;
  }
};

struct FastWorkspace {
  PackedCodes left, right;
  Buffer scratch;   // per thread
  Buffer residual;  // decoded outliers, then their places; split ones as PlaceOutliers left them
  int64_t size_bytes() const;
};

// The variant of the set for this GEMM; nullptr when its groups do not fit any (the reference path
// then serves).
const Variant* ChooseVariant(const KernelSet& kernels, const CodeGemm& gemm);

enum class PackSide : uint8_t { kLeft, kRight };
Status PackCodes(Backend& backend, ThreadPool& pool, const KernelSet& kernels,
                 const Variant& variant, const CodeGemm& gemm, PackSide side, PackedCodes* out);
Status MultiplyCodes(Backend& backend, ThreadPool& pool, const KernelSet& kernels,
                     const Variant& variant, const CodeGemm& gemm, const PackedCodes& left,
                     const PackedCodes& right, FastWorkspace* workspace);

// Both packings and the product. Precondition: ChooseVariant found `variant`.
Status FastCodeGemm(Backend& backend, ThreadPool& pool, const KernelSet& kernels,
                    const Variant& variant, const CodeGemm& gemm, FastWorkspace* workspace);

}  // namespace nibble::cpu::codes
