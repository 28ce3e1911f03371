// SPDX-License-Identifier: Apache-2.0
//
// Gradients through the weight quantizer for any layout of scales: surrogate derivatives, and the
// part of the gradient that goes through the scale's maximum; masks.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_scales.h"
#include "kernels/estimator_rules.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/surrogates.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 8192;

// Number of the scale group of a stored element.
int64_t GroupOf(const QuantizedTensor& x, int64_t row, int64_t col) {
  switch (x.block) {
    case Block::kTensor:
      return 0;
    case Block::kTile:
      return row / x.group * ((x.cols + x.group - 1) / x.group) + col / x.group;
    case Block::kGroup:
      return x.along_rows() ? col * ((x.rows + x.group - 1) / x.group) + row / x.group
                            : row * ((x.cols + x.group - 1) / x.group) + col / x.group;
    default:
      return x.per_column() ? col : row;
  }
}

// What a weight is multiplied by to reach the element grid.
float MultiplierOf(const QuantizedTensor& x, bool divides, int64_t group) {
  const float enc = static_cast<const float*>(x.enc.data())[group];
  return divides ? 1.0f / enc : enc;
}

struct GroupMax {
  double derivative_sum = 0;  // sum of g_i (D_i w_i - Q(w_i))
  double weight_sum = 0;      // sum of softmax weights
  double mean = 0;            // softmax-weighted sum of |y|
  float largest = 0;          // of |y|
  int64_t at = -1;            // first element of it
};

}  // namespace

// dL/dw_j through n(W), the maximum in enc = F/n: -(dn/dw_j / n) sum_i g_i (D_i w_i - Q(w_i)), for
// an unrounded scale. dn/dw_j is the sign at the largest element, or the gradient of sum p |y|
// with p = softmax(temperature |y|), both on the axis of scaled values, where n is the grid's max.
Status CpuBackend::MaxGradientPart(const WeightEstimator& estimator, ConstTensorView wgrad,
                                   ConstTensorView weight, const QuantizedTensor& quantized,
                                   TensorView gradient) {
  const int64_t rows = quantized.rows, cols = quantized.cols;
  ASSIGN_OR_RETURN(const TensorView decoded, max_gradient_decoded_.View(*this, rows, cols));
  RETURN_IF_ERROR(Dequantize(quantized, decoded));
  std::vector<GroupMax> groups(static_cast<size_t>(quantized.scale_count()));
  const bool soft = estimator.max_gradient != MaxGradient::kAbsmax;
  const auto for_all = [&](auto&& body) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const int64_t group = GroupOf(quantized, row, col);
        const int64_t i = row * cols + col;
        const float w = formats::RoundBf16(weight.f32()[i]);
        const float y = SnapToE2M1Max(w * MultiplierOf(quantized, false, group));
        body(groups[static_cast<size_t>(group)], i, w, y);
      }
    }
  };
  for_all([&](GroupMax& group, int64_t i, float w, float y) {
    const double g = static_cast<double>(wgrad.f32()[i]);
    group.derivative_sum +=
        g * (static_cast<double>(EstimatorDerivative(estimator, y)) * static_cast<double>(w) -
             static_cast<double>(decoded.f32()[i]));
    const float a = formats::Magnitude(y);
    if (group.at < 0 || a > group.largest) {
      group.largest = a;
      group.at = i;
    }
  });
  // The softmax sees values whose largest lies at the grid's maximum: with a smooth maximum in the
  // forward scale, y goes beyond it.
  const bool smooth_scale = estimator.max_gradient == MaxGradient::kSoftmax;
  const double grid_max = static_cast<double>(ElemMax(quantized.elem));
  const auto unit_of = [&](const GroupMax& group) {
    return smooth_scale ? grid_max / static_cast<double>(group.largest) : 1.0;
  };
  const auto weight_of = [&](const GroupMax& group, float y) {
    const double distance = static_cast<double>(formats::Magnitude(y) - group.largest);
    return formats::SoftmaxWeight(estimator.max_temperature, unit_of(group) * distance);
  };
  if (soft) {
    for_all([&](GroupMax& group, int64_t, float, float y) {
      const double p = weight_of(group, y);
      group.weight_sum += p;
      group.mean += p * static_cast<double>(formats::Magnitude(y));
    });
    for (GroupMax& group : groups) group.mean /= group.weight_sum;
  }
  for_all([&](GroupMax& group, int64_t i, float w, float y) {
    if (group.largest == 0 || !std::isfinite(group.largest)) return;
    double slope = 0;  // d n / d|w_j| times w's unit: n and w share the factor enc
    if (soft) {
      const double a = static_cast<double>(formats::Magnitude(y));
      slope = weight_of(group, y) / group.weight_sum *
              (1.0 + estimator.max_temperature * unit_of(group) * (a - group.mean));
    } else if (i == group.at) {
      slope = 1;
    }
    const double n = soft ? group.mean : static_cast<double>(group.largest);
    const double enc =
        static_cast<double>(MultiplierOf(quantized, false, GroupOf(quantized, i / cols, i % cols)));
    const double sign = std::signbit(w) ? -1.0 : 1.0;
    gradient.f32()[i] += static_cast<float>(-sign * slope * enc / n * group.derivative_sum);
  });
  return OkStatus();
}

void CpuBackend::EstimateByGroups(const WeightEstimator& estimator, bool accumulate,
                                  ConstTensorView product, ConstTensorView weight,
                                  const QuantizedTensor& quantized, TensorView gradient) {
  const int64_t cols = quantized.cols;
  const bool divides = quantized.scale == ScaleRule::kQuest;
  pool_.RunRanges(
      quantized.rows, std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(1, cols)),
      [&](int64_t first, int64_t last, int) {
        for (int64_t row = first; row < last; ++row) {
          for (int64_t col = 0; col < cols; ++col) {
            const float enc = MultiplierOf(quantized, divides, GroupOf(quantized, row, col));
            const int64_t i = row * cols + col;
            const float y = SnapToE2M1Max(formats::RoundBf16(weight.f32()[i]) * enc);
            const float before = accumulate ? gradient.f32()[i] : 0.0f;
            gradient.f32()[i] = before + product.f32()[i] * EstimatorDerivative(estimator, y);
          }
        }
      });
}

Status CpuBackend::ApplyMask(const QuantizedTensor& quantized, TensorView x) {
  RETURN_IF_ERROR(CheckView("ApplyMask", "x", x, quantized.rows, quantized.cols));
  if (!quantized.has_mask) {
    return FailedPreconditionError("ApplyMask: the quantized tensor has no mask");
  }
  const uint8_t* mask = static_cast<const uint8_t*>(quantized.mask.data());
  pool_.RunRanges(x.size(), kElementsPerChunk, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      if (mask[i] == 0) x.f32()[i] = 0.0f;
    }
  });
  return OkStatus();
}

}  // namespace nibble::cpu
