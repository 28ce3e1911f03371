// SPDX-License-Identifier: Apache-2.0
//
// AdamW and the reductions that reach the host.
#include "kernels/adamw_update.h"
#include "kernels/checks.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_math.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kGrain = 16384;

NIBBLE_LOOP void AdamWRange(const AdamWUpdate& update, const float* gradient, float* m, float* v,
                            float* parameter, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    float first = m[i], second = v[i];
    parameter[i] = update.Apply(gradient[i], &first, &second, parameter[i]);
    m[i] = first;
    v[i] = second;
  }
}

NIBBLE_LOOP double SumRange(const float* x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(x[i + l]);
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += static_cast<double>(x[i]);
  return FoldLanes(lanes);
}

NIBBLE_LOOP double SumSquaresRange(const float* x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const double value = static_cast<double>(x[i + l]);
      lanes[l] += value * value;
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    lanes[l] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return FoldLanes(lanes);
}

}  // namespace

Status CpuBackend::AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m,
                         TensorView v, TensorView parameter) {
  RETURN_IF_ERROR(CheckAdamW(gradient, m, v, parameter, params.step));
  const AdamWUpdate update = AdamWUpdateOf(params);
  pool_.RunRanges(parameter.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<AdamWRange>(update, gradient.f32() + first, m.f32() + first, v.f32() + first,
                       parameter.f32() + first, last - first);
  });
  return OkStatus();
}

Result<double> CpuBackend::Reduce(ConstTensorView x, bool squared) {
  RETURN_IF_ERROR(CheckSameSize(squared ? "SumOfSquares" : "Sum", "x", x, x.size()));
  const int64_t chunks = (x.size() + kGrain - 1) / kGrain;
  RETURN_IF_ERROR(reduce_partials_.Reserve(*this, chunks * static_cast<int64_t>(sizeof(double))));
  double* partials = static_cast<double*>(reduce_partials_.data());
  pool_.RunRanges(x.size(), kGrain, [&](int64_t first, int64_t last, int) {
    const float* begin = x.f32() + first;
    partials[first / kGrain] = squared ? Cloned<SumSquaresRange>(begin, last - first)
                                       : Cloned<SumRange>(begin, last - first);
  });
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partials[chunk];
  return total;
}

Result<double> CpuBackend::Sum(ConstTensorView x) { return Reduce(x, false); }
Result<double> CpuBackend::SumOfSquares(ConstTensorView x) { return Reduce(x, true); }

}  // namespace nibble::cpu
