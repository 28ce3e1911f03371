// SPDX-License-Identifier: Apache-2.0
#include "kernels/checks.h"

#include "base/strings.h"
#include "kernels/backend.h"

namespace nibble {

Status CheckView(const char* op, const char* what, const ConstTensorView& view, int64_t rows,
                 int64_t cols, DType dtype) {
  if (view.dtype != dtype) {
    return UnimplementedError(StrFormat("%s: %s is %s; this backend takes %s", op, what,
                                        DTypeName(view.dtype), DTypeName(dtype)));
  }
  if (view.rows != rows || view.cols != cols) {
    return InvalidArgumentError(
        StrFormat("%s: %s is (%lld, %lld); expected (%lld, %lld)", op, what,
                  static_cast<long long>(view.rows), static_cast<long long>(view.cols),
                  static_cast<long long>(rows), static_cast<long long>(cols)));
  }
  if (view.data == nullptr && view.size() > 0) {
    return InvalidArgumentError(StrFormat("%s: %s has no memory", op, what));
  }
  return OkStatus();
}

Status CheckSameSize(const char* op, const char* what, const ConstTensorView& view, int64_t size,
                     DType dtype) {
  if (view.size() != size) {
    return InvalidArgumentError(StrFormat("%s: %s has %lld elements; expected %lld", op, what,
                                          static_cast<long long>(view.size()),
                                          static_cast<long long>(size)));
  }
  return CheckView(op, what, view, view.rows, view.cols, dtype);
}

Status CheckMoments(const char* op, const ConstTensorView& m, const ConstTensorView& v,
                    int64_t size, int64_t step) {
  if (m.size() == size && v.size() == size && step >= 1) return OkStatus();
  return InvalidArgumentError(
      StrFormat("%s: moments of %lld and %lld elements at step %lld; expected %lld elements and "
                "step 1 or later",
                op, static_cast<long long>(m.size()), static_cast<long long>(v.size()),
                static_cast<long long>(step), static_cast<long long>(size)));
}

Status CheckAdamW(const ConstTensorView& gradient, const ConstTensorView& m,
                  const ConstTensorView& v, const ConstTensorView& parameter, int64_t step) {
  const int64_t size = parameter.size();
  RETURN_IF_ERROR(CheckSameSize("AdamW", "gradient", gradient, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "m", m, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "v", v, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "parameter", parameter, size));
  return CheckMoments("AdamW", m, v, size, step);
}

Status CheckIsFactor(const char* op, const PendingFactor& pending) {
  if (pending.estimator.max_gradient == MaxGradient::kIgnore) return OkStatus();
  return InvalidArgumentError(
      StrFormat("%s: a gradient through the scale's maximum is no factor; use DgeAccumulate", op));
}

}  // namespace nibble
