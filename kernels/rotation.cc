// SPDX-License-Identifier: Apache-2.0
#include "kernels/rotation.h"

#include "base/strings.h"
#include "kernels/formats/hadamard.h"
#include "kernels/formats/philox.h"

namespace nibble {

Status CheckRotation(const Rotation& rotation, const QuantizeContext& context, int64_t rows,
                     int64_t cols) {
  const int size = rotation.size;
  if (size < 2 || size > formats::kMaxRotation || (size & (size - 1)) != 0) {
    return InvalidArgumentError(StrFormat("Rotate: size %d; expected a power of two from 2 to %d",
                                          size, formats::kMaxRotation));
  }
  const int64_t depth = context.contraction == Axis::kRows ? rows : cols;
  if (depth % size == 0) return OkStatus();
  return InvalidArgumentError(StrFormat(
      "Rotate: the contraction has %lld elements; expected a multiple of the rotation's %d",
      static_cast<long long>(depth), size));
}

bool IsNegative(const Rotation& rotation, const QuantizeContext& context, int i) {
  if (rotation.signs == Signs::kFixed) return formats::FixedSign(i) < 0;
  if (rotation.signs != Signs::kFresh) return false;
  if (context.replay != nullptr) return context.replay->Negative(context.rotation_stream, i);
  return formats::RandomWord(context.seed, context.step, context.rotation_stream,
                             static_cast<uint64_t>(i)) >>
             31 !=
         0;
}

}  // namespace nibble
