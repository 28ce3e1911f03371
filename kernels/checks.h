// SPDX-License-Identifier: Apache-2.0
//
// Shape and type checks shared by every backend.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/tensor.h"

namespace nibble {

struct PendingFactor;

// INVALID_ARGUMENT unless the view is of this shape with memory behind it; UNIMPLEMENTED for
// another type. The message names the operation, the view and both shapes.
Status CheckView(const char* op, const char* what, const ConstTensorView& view, int64_t rows,
                 int64_t cols, DType dtype = DType::kF32);
// Unless the view has as many elements.
Status CheckSameSize(const char* op, const char* what, const ConstTensorView& view, int64_t size,
                     DType dtype = DType::kF32);
// What AdamW of an FP32 state takes: as many elements of FP32 in each, the step 1 or later.
Status CheckAdamW(const ConstTensorView& gradient, const ConstTensorView& m,
                  const ConstTensorView& v, const ConstTensorView& parameter, int64_t step);
// Unless both moments, of any type, have as many elements and the step is 1 or later.
Status CheckMoments(const char* op, const ConstTensorView& m, const ConstTensorView& v,
                    int64_t size, int64_t step);
// Unless the estimator is a factor of each element, with no part through the scale's maximum.
Status CheckIsFactor(const char* op, const PendingFactor& pending);

}  // namespace nibble
