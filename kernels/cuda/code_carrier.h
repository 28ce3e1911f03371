// SPDX-License-Identifier: Apache-2.0
//
// Which operand form carries codes to the tensor cores of a device, and which operands lie there
// already.
//
// Purpose: the choices from formats, scales and sizes alone, on the host, where tests reach them
// without a GPU. Thread-safety: pure functions; CarriedOperands is thread-compatible.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"

namespace nibble::cuda {

// Products a device has beside FP32 and BF16.
struct NarrowProducts {
  bool outer_fp8 = false;  // FP8 bytes, an FP32 scale per row and column (Hopper)
  bool block_fp8 = false;  // E4M3 bytes, an E8M0 scale per 32 (MXFP8; Blackwell)
  bool block_fp4 = false;  // E2M1 pairs, an E4M3 scale per 16 (NVFP4; Blackwell)
};

// kBf16: also a code times its group's scale; the rest of the scales follow in FP32. kF32: decoded
// in full where groups are concerned.
enum class CodeCarrier : uint8_t { kF32, kBf16, kOuterFp8, kBlockFp8, kBlockFp4 };
const char* CodeCarrierName(CodeCarrier carrier);  // "fp32", "bf16", "fp8", "mxfp8", "nvfp4"

// out (m, n) = sum over k of codes of a and b; kReference asks for kF32.
CodeCarrier ChooseCarrier(const NarrowProducts& device, Support path, const QuantizedTensor& a,
                          const QuantizedTensor& b, int64_t m, int64_t n, int64_t k);

// Whether the codes of x are what the carrier reads, as they rest in memory.
bool LiesAsCarried(const QuantizedTensor& x, CodeCarrier carrier, bool transposed);

// Places of carried operands. X enters the forward product as the left one, the weight gradient as
// the right one; places of their own let the layers that share an X share what it was carried as.
enum class CarriedPlace : uint8_t { kLeft, kLeftTurned, kForward, kInputGradient, kWeightGradient };
inline constexpr size_t kCarriedPlaces = 5;
CarriedPlace LeftPlace(Transpose transpose_a);
CarriedPlace RightPlace(Transpose transpose_a, Transpose transpose_b);

// What each place holds. An operand is known by the version of its codes.
class CarriedOperands {
 public:
  bool Holds(CarriedPlace place, uint64_t version, CodeCarrier carrier) const {
    const Entry& entry = entries_[static_cast<size_t>(place)];
    return version != 0 && entry.version == version && entry.carrier == carrier;
  }
  void Put(CarriedPlace place, uint64_t version, CodeCarrier carrier) {
    entries_[static_cast<size_t>(place)] = {version, carrier};
  }

 private:
  struct Entry {
    uint64_t version = 0;
    CodeCarrier carrier = CodeCarrier::kF32;
  };
  std::array<Entry, kCarriedPlaces> entries_;
};

}  // namespace nibble::cuda
