// SPDX-License-Identifier: Apache-2.0
//
// SwiGLU and softmax cross-entropy.
#include <cmath>

#include "base/strings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_math.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kGrain = 8192;
constexpr int64_t kRowGrain = 4;

NIBBLE_LOOP void SwiGluRange(const float* gate, const float* up, float* out, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float sigmoid = 1.0f / (1.0f + Exp(-gate[i]));
    out[i] = (gate[i] * sigmoid) * up[i];
  }
}

NIBBLE_LOOP void SwiGluBackwardRange(const float* dout, const float* gate, const float* up,
                                     float* dgate, float* dup, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i];
    const float d = dout[i];
    const float u = up[i];
    const float sigmoid = 1.0f / (1.0f + Exp(-g));
    const float silu = g * sigmoid;
    dup[i] = d * silu;
    dgate[i] = (d * u) * (sigmoid + silu * (1.0f - sigmoid));
  }
}

NIBBLE_LOOP float RowMax(const float* x, int64_t n) { return LargestOf(x, n); }

// sum of exp(x - max).
NIBBLE_LOOP float RowExpSum(const float* x, float max, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += Exp(x[i + l] - max);
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += Exp(x[i] - max);
  return FoldLanes(lanes);
}

// The same sum, leaving the exponentials in x.
NIBBLE_LOOP float RowExpInPlace(float* x, float max, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float value = Exp(x[i + l] - max);
      x[i + l] = value;
      lanes[l] += value;
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    x[i] = Exp(x[i] - max);
    lanes[l] += x[i];
  }
  return FoldLanes(lanes);
}

NIBBLE_LOOP void RowScale(float* x, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * factor;
}

}  // namespace

Status CpuBackend::SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "gate", gate, out.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "up", up, out.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "out", out, out.size()));
  pool_.RunRanges(out.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<SwiGluRange>(gate.f32() + first, up.f32() + first, out.f32() + first, last - first);
  });
  return OkStatus();
}

Status CpuBackend::SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                                  TensorView dgate, TensorView dup) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dout", dout, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "gate", gate, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "up", up, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dgate", dgate, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dup", dup, dgate.size()));
  pool_.RunRanges(dgate.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<SwiGluBackwardRange>(dout.f32() + first, gate.f32() + first, up.f32() + first,
                                dgate.f32() + first, dup.f32() + first, last - first);
  });
  return OkStatus();
}

Status CpuBackend::CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                                TensorView gradient, TensorView losses) {
  const int64_t vocabulary = logits.cols;
  RETURN_IF_ERROR(CheckView("CrossEntropy", "logits", logits, logits.rows, vocabulary));
  RETURN_IF_ERROR(CheckSameSize("CrossEntropy", "targets", targets, logits.rows, DType::kI32));
  RETURN_IF_ERROR(CheckSameSize("CrossEntropy", "losses", losses, logits.rows));
  const bool write_gradient = gradient.data != nullptr;
  if (write_gradient && (gradient.data != logits.data || gradient.dtype != DType::kF32)) {
    return InvalidArgumentError("CrossEntropy: the gradient takes the place of the logits, FP32");
  }
  for (int64_t t = 0; t < logits.rows; ++t) {
    const int64_t target = targets.i32()[t];
    if (target != kIgnoreTarget && (target < 0 || target >= vocabulary)) {
      return OutOfRangeError(
          StrFormat("CrossEntropy: target %lld at row %lld is outside the vocabulary of %lld",
                    static_cast<long long>(target), static_cast<long long>(t),
                    static_cast<long long>(vocabulary)));
    }
  }
  pool_.RunRanges(logits.rows, kRowGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      float* row = logits.f32() + t * vocabulary;
      const int32_t target = targets.i32()[t];
      if (target == kIgnoreTarget) {
        losses.f32()[t] = 0.0f;
        if (write_gradient) std::fill(row, row + vocabulary, 0.0f);
        continue;
      }
      const float max = Cloned<RowMax>(row, vocabulary);
      const float distance = max - row[target];
      const float sum = write_gradient ? Cloned<RowExpInPlace>(row, max, vocabulary)
                                       : Cloned<RowExpSum>(row, max, vocabulary);
      losses.f32()[t] = distance + std::log(sum);
      if (!write_gradient) continue;
      Cloned<RowScale>(row, gradient_scale / sum, vocabulary);
      row[target] -= gradient_scale;
    }
  });
  return OkStatus();
}

}  // namespace nibble::cpu
