// SPDX-License-Identifier: Apache-2.0
//
// Hadamard rotations along either axis.
#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/formats/hadamard.h"
#include "kernels/rotation.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 8192;
// Neighbouring columns handled together when groups run along the rows.
constexpr int kLanes = 16;

// One group of `size` coordinates for `lanes` neighbours; coordinate i of lane l is at
// values[i * kLanes + l].
void RotateLanes(const float* signs, int size, float factor, bool inverse, float* values) {
  if (!inverse) {
    for (int i = 0; i < size; ++i) {
      for (int64_t l = 0; l < kLanes; ++l) values[i * kLanes + l] *= signs[i];
    }
  }
  formats::HadamardInPlace<kLanes>(values, size);
  for (int i = 0; i < size; ++i) {
    const float scale = inverse ? factor * signs[i] : factor;
    for (int64_t l = 0; l < kLanes; ++l) values[i * kLanes + l] *= scale;
  }
}

}  // namespace

Status CpuBackend::Rotate(const Rotation& rotation, const QuantizeContext& context, bool inverse,
                          ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(CheckView("Rotate", "x", x, x.rows, x.cols));
  RETURN_IF_ERROR(CheckView("Rotate", "out", out, x.rows, x.cols));
  RETURN_IF_ERROR(CheckRotation(rotation, context, x.rows, x.cols));
  const int size = rotation.size;
  const bool by_rows = context.contraction == Axis::kRows;
  const int64_t depth = by_rows ? x.rows : x.cols;
  float signs[formats::kMaxRotation];
  for (int i = 0; i < size; ++i) signs[i] = IsNegative(rotation, context, i) ? -1.0f : 1.0f;
  const float factor = formats::RotationFactor(size);
  // Groups of one line lie `group_step` apart, their coordinates `step`, neighbouring lines `lane`.
  const int64_t lines = by_rows ? x.cols : x.rows;
  const int64_t step = by_rows ? x.cols : 1;
  const int64_t lane = by_rows ? 1 : x.cols;
  const int64_t blocks = (lines + kLanes - 1) / kLanes;
  const int64_t groups = depth / size;
  const int64_t grain = std::max<int64_t>(1, kElementsPerChunk / (kLanes * size));
  pool_.RunRanges(blocks * groups, grain, [&](int64_t first, int64_t last, int) {
    float values[formats::kMaxRotation * kLanes] = {};
    for (int64_t job = first; job < last; ++job) {
      const int64_t line = job / groups * kLanes;
      const int64_t start = line * lane + job % groups * size * step;
      const int64_t used = std::min<int64_t>(kLanes, lines - line);
      for (int i = 0; i < size; ++i) {
        for (int64_t l = 0; l < used; ++l) {
          values[i * kLanes + l] = x.f32()[start + i * step + l * lane];
        }
      }
      RotateLanes(signs, size, factor, inverse, values);
      for (int i = 0; i < size; ++i) {
        for (int64_t l = 0; l < used; ++l) {
          out.f32()[start + i * step + l * lane] = values[i * kLanes + l];
        }
      }
    }
  });
  return OkStatus();
}

}  // namespace nibble::cpu
