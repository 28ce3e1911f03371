// SPDX-License-Identifier: Apache-2.0
//
// Quantize, Dequantize, DGE and health: passes over rows, built from quantize_loops.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/strings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/quantize_loops.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/scales.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 8192;
constexpr int64_t kOrderKeys = 65536;

// Rows per chunk, from the width only.
int64_t RowGrain(int64_t cols) {
  return std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(1, cols));
}

// enc of one scale group; counts a non-finite amax.
float EncOf(const Quant& quant, uint32_t amax_bits, int64_t* nonfinite) {
  const float amax = formats::BitsFloat(amax_bits);
  if (!formats::IsFinite(amax)) ++*nonfinite;
  switch (quant.scale) {
    case ScaleRule::kNone:
      return 1.0f;
    case ScaleRule::kF32:
      return formats::ScaleF32(amax, quant.scale_max);
    case ScaleRule::kP2:
      return formats::ScaleP2(amax, quant.scale_max);
    case ScaleRule::kCurrent:
      return formats::ScaleCurrent(amax, quant.scale_max, false);
    case ScaleRule::kCurrentP2:
      return formats::ScaleCurrent(amax, quant.scale_max, true);
    default:
      return 1.0f;
  }
}

// Writes the outliers of one segment to the CSR arrays from *next on.
struct ResidualWriter {
  OccComp comp;
  float enc;
  int32_t* columns;
  void* values;

  void Write(const float* x, float low, float high, int64_t first_column, int64_t n,
             int32_t* next) const {
    for (int64_t i = 0; i < n; ++i) {
      const float value = formats::RoundBf16(x[i]);
      if (!(value < low || value > high)) continue;
      const float residual = value - formats::OccClamp(value, low, high);
      columns[*next] = static_cast<int32_t>(first_column + i);
      if (comp == OccComp::kE4M3) {
        static_cast<uint8_t*>(values)[*next] = formats::EncodeE4M3(residual * enc);
      } else {
        static_cast<float*>(values)[*next] = formats::RoundBf16(residual);
      }
      ++*next;
    }
  }
};

// decoded row += residual row.
void AddResidualRow(const QuantizedTensor& x, int64_t row, float* decoded) {
  const int32_t* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
  const int32_t* columns = static_cast<const int32_t*>(x.residual_columns.data());
  for (int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
    if (x.comp == OccComp::kE4M3) {
      const uint8_t code = static_cast<const uint8_t*>(x.residual_values.data())[i];
      decoded[columns[i]] += formats::DecodeE4M3(code) / x.residual_enc;
    } else {
      decoded[columns[i]] += static_cast<const float*>(x.residual_values.data())[i];
    }
  }
}

const float* Encs(const QuantizedTensor& x) { return static_cast<const float*>(x.enc.data()); }

}  // namespace

Status CpuBackend::TensorBounds(const Occ& occ, ConstTensorView x, RowStats* stats) {
  // One histogram per thread: counts add up to the same whoever counted.
  const int64_t histograms = pool_.threads();
  RETURN_IF_ERROR(histogram_.Reserve(*this, histograms * kOrderKeys * 4));
  uint32_t* counts = static_cast<uint32_t*>(histogram_.data());
  std::memset(counts, 0, static_cast<size_t>(histograms * kOrderKeys) * sizeof(uint32_t));
  pool_.RunRanges(x.size(), kElementsPerChunk, [&](int64_t first, int64_t last, int worker) {
    uint32_t* mine = counts + worker * kOrderKeys;
    uint16_t keys[kSegment];
    for (int64_t i = first; i < last; i += kSegment) {
      const int64_t n = std::min(kSegment, last - i);
      OrderKeys(x.f32() + i, keys, n);
      for (int64_t j = 0; j < n; ++j) ++mine[keys[j]];
    }
  });
  const formats::QuantileIndices index = formats::OccIndices(occ.alpha, x.size());
  int64_t seen = 0;
  float low = 0, high = 0;
  for (int64_t key = 0; key < kOrderKeys && seen <= index.high; ++key) {
    int64_t count = 0;
    for (int64_t h = 0; h < histograms; ++h) count += counts[h * kOrderKeys + key];
    const float value = formats::FromBf16(formats::Bf16FromOrderKey(static_cast<uint16_t>(key)));
    if (seen <= index.low && index.low < seen + count) low = value;
    if (seen <= index.high && index.high < seen + count) high = value;
    seen += count;
  }
  for (int64_t row = 0; row < x.rows; ++row) {
    stats[row].low = low;
    stats[row].high = high;
  }
  return OkStatus();
}

Status CpuBackend::TokenBounds(const Occ& occ, ConstTensorView x, RowStats* stats) {
  RETURN_IF_ERROR(histogram_.Reserve(*this, pool_.threads() * x.cols * 2));
  uint16_t* scratch = static_cast<uint16_t*>(histogram_.data());
  const formats::QuantileIndices index = formats::OccIndices(occ.alpha, x.cols);
  pool_.RunRanges(x.rows, RowGrain(x.cols), [&](int64_t first, int64_t last, int worker) {
    uint16_t* keys = scratch + worker * x.cols;
    for (int64_t row = first; row < last; ++row) {
      OrderKeys(x.f32() + row * x.cols, keys, x.cols);
      const auto value_at = [&](int64_t i) {
        std::nth_element(keys, keys + i, keys + x.cols);
        return formats::FromBf16(formats::Bf16FromOrderKey(keys[i]));
      };
      stats[row].low = value_at(index.low);
      stats[row].high = value_at(index.high);
    }
  });
  return OkStatus();
}

Result<RowStats*> CpuBackend::MeasureRows(const Quant& quant, ConstTensorView x) {
  RETURN_IF_ERROR(row_stats_.Reserve(*this, x.rows * static_cast<int64_t>(sizeof(RowStats))));
  RowStats* stats = static_cast<RowStats*>(row_stats_.data());
  const bool clamped = quant.pre.enabled && x.cols > 0;
  if (clamped) {
    RETURN_IF_ERROR(quant.pre.scope == OccScope::kTensor ? TensorBounds(quant.pre, x, stats)
                                                         : TokenBounds(quant.pre, x, stats));
  }
  pool_.RunRanges(x.rows, RowGrain(x.cols), [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      if (clamped) {
        MeasureClamped(x.f32() + row * x.cols, x.cols, &stats[row]);
      } else {
        stats[row].low = -std::numeric_limits<float>::infinity();
        stats[row].high = std::numeric_limits<float>::infinity();
        MeasurePlain(x.f32() + row * x.cols, x.cols, &stats[row]);
      }
    }
  });
  return stats;
}

Status CpuBackend::SetScales(const Quant& quant, const RowStats* stats, QuantizedTensor* out) {
  out->nonfinite_amax = 0;
  out->residual_count = 0;
  out->residual_enc = 1.0f;
  RETURN_IF_ERROR(out->enc.Reserve(*this, out->scale_count() * 4));
  float* enc = static_cast<float*>(out->enc.data());
  uint32_t tensor_bits = 0;
  uint32_t residual_bits = 0;
  for (int64_t row = 0; row < out->rows; ++row) {
    tensor_bits = std::max(tensor_bits, stats[row].amax_bits);
    residual_bits = std::max(residual_bits, stats[row].residual_amax_bits);
    if (out->per_row()) enc[row] = EncOf(quant, stats[row].amax_bits, &out->nonfinite_amax);
  }
  if (!out->per_row()) enc[0] = EncOf(quant, tensor_bits, &out->nonfinite_amax);
  if (out->comp == OccComp::kNone) return OkStatus();

  RETURN_IF_ERROR(out->residual_offsets.Reserve(*this, (out->rows + 1) * 4));
  int32_t* offsets = static_cast<int32_t*>(out->residual_offsets.data());
  for (int64_t row = 0; row < out->rows; ++row) {
    offsets[row] = static_cast<int32_t>(out->residual_count);
    out->residual_count += stats[row].residual_count;
  }
  offsets[out->rows] = static_cast<int32_t>(out->residual_count);
  const float amax = formats::BitsFloat(residual_bits);
  if (!formats::IsFinite(amax)) ++out->nonfinite_amax;
  if (out->comp == OccComp::kE4M3) out->residual_enc = formats::ScaleP2(amax, formats::kE4M3Max);
  // Room for twice the expected share, so that ordinary steps do not grow it.
  const double share = 4.0 * (1.0 - quant.pre.alpha);
  const int64_t expected = static_cast<int64_t>(share * static_cast<double>(out->rows * out->cols));
  const int64_t capacity = std::max(out->residual_count, expected);
  RETURN_IF_ERROR(out->residual_columns.Reserve(*this, capacity * 4));
  return out->residual_values.Reserve(*this, capacity * (out->comp == OccComp::kE4M3 ? 1 : 4));
}

Status CpuBackend::EncodeRows(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                              const RowStats* stats, QuantizedTensor* out, TensorView decoded) {
  if (out->has_codes) RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
  const bool residual = out->comp != OccComp::kNone;
  const ResidualWriter writer{out->comp, out->residual_enc,
                              static_cast<int32_t*>(out->residual_columns.data()),
                              out->residual_values.data()};
  const int32_t* offsets = static_cast<const int32_t*>(out->residual_offsets.data());
  uint8_t* codes = static_cast<uint8_t*>(out->codes.data());
  const int64_t row_bytes = out->code_row_bytes();
  const int64_t bits = ElemBits(out->elem);
  pool_.RunRanges(x.rows, RowGrain(x.cols), [&](int64_t first, int64_t last, int) {
    float grid[kSegment];
    for (int64_t row = first; row < last; ++row) {
      const float enc = Encs(*out)[out->per_row() ? row : 0];
      const RowStats& bounds = stats[row];
      const float* source = x.f32() + row * x.cols;
      const bool outliers = residual && bounds.residual_count > 0;
      int32_t next = residual ? offsets[row] : 0;
      for (int64_t col = 0; col < x.cols; col += kSegment) {
        const int64_t n = std::min(kSegment, x.cols - col);
        RoundSegment(quant, {context, row * x.cols + col}, source + col, bounds.low, bounds.high,
                     enc, grid, n);
        if (out->has_codes) {
          EncodeSegment(out->elem, grid, codes + row * row_bytes + col * bits / 8, n);
        }
        // Before the decoded form, which may overwrite the source.
        if (outliers) writer.Write(source + col, bounds.low, bounds.high, col, n, &next);
        if (decoded.data == nullptr) continue;
        DecodeSegment(out->scale, enc, grid, decoded.f32() + row * x.cols + col, n);
      }
      if (outliers && decoded.data != nullptr) {
        AddResidualRow(*out, row, decoded.f32() + row * x.cols);
      }
    }
  });
  return OkStatus();
}

Status CpuBackend::Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                            QuantizedTensor* out, TensorView decoded) {
  RETURN_IF_ERROR(CheckView("Quantize", "x", x, x.rows, x.cols));
  if (decoded.data != nullptr) {
    RETURN_IF_ERROR(CheckView("Quantize", "decoded", decoded, x.rows, x.cols));
  }
  if (quant.source == Source::kReuse || quant.elem == Elem::kF32) {
    return InvalidArgumentError("Quantize: a slot with elem fp32 or source reuse has no codes");
  }
  out->rows = x.rows;
  out->cols = x.cols;
  out->elem = quant.elem;
  out->block = quant.block;
  out->scale = quant.scale;
  out->comp = quant.pre.enabled ? quant.pre.comp : OccComp::kNone;
  out->has_codes = context.keep_codes;
  ASSIGN_OR_RETURN(const RowStats* stats, MeasureRows(quant, x));
  RETURN_IF_ERROR(SetScales(quant, stats, out));
  return EncodeRows(quant, context, x, stats, out, decoded);
}

Status CpuBackend::Dequantize(const QuantizedTensor& x, TensorView decoded) {
  RETURN_IF_ERROR(CheckView("Dequantize", "decoded", decoded, x.rows, x.cols));
  if (!x.has_codes) {
    return FailedPreconditionError("Dequantize: the codes were not kept (keep_codes was false)");
  }
  const uint8_t* codes = static_cast<const uint8_t*>(x.codes.data());
  const int64_t row_bytes = x.code_row_bytes();
  const int64_t bits = ElemBits(x.elem);
  pool_.RunRanges(x.rows, RowGrain(x.cols), [&](int64_t first, int64_t last, int) {
    float grid[kSegment];
    for (int64_t row = first; row < last; ++row) {
      const float enc = Encs(x)[x.per_row() ? row : 0];
      float* target = decoded.f32() + row * x.cols;
      for (int64_t col = 0; col < x.cols; col += kSegment) {
        const int64_t n = std::min(kSegment, x.cols - col);
        GridFromCodes(x.elem, codes + row * row_bytes + col * bits / 8, grid, n);
        DecodeSegment(x.scale, enc, grid, target + col, n);
      }
      if (x.comp != OccComp::kNone) AddResidualRow(x, row, target);
    }
  });
  return OkStatus();
}

Status CpuBackend::DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                                 ConstTensorView weight, const QuantizedTensor& quantized,
                                 TensorView gradient) {
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "wgrad", wgrad, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "weight", weight, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "gradient", gradient, quantized.rows, quantized.cols));
  if (quantized.elem != Elem::kE2M1 || !(estimator.k >= 1) || !(estimator.clip > 0)) {
    return InvalidArgumentError(
        StrFormat("DgeAccumulate: weight format %s, k = %g, clip = %g; expected e2m1, k >= 1, "
                  "clip > 0",
                  ElemName(quantized.elem).c_str(), estimator.k, estimator.clip));
  }
  const int64_t cols = quantized.cols;
  pool_.RunRanges(quantized.rows, RowGrain(cols), [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      DgeSegment(1.0 / estimator.k, estimator.clip, Encs(quantized)[quantized.per_row() ? row : 0],
                 wgrad.f32() + row * cols, weight.f32() + row * cols, gradient.f32() + row * cols,
                 cols);
    }
  });
  return OkStatus();
}

}  // namespace nibble::cpu
