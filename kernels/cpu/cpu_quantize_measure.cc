// SPDX-License-Identifier: Apache-2.0
//
// The first pass of Quantize over the rows: what is folded, clamping statistics, amax, scales, and
// room for the outliers.
#include <algorithm>
#include <limits>

#include "base/strings.h"
#include "kernels/cpu/code_loops.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/quantize_job.h"
#include "kernels/cpu/vector_scan.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/scales.h"

namespace nibble::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

// Whether a stored row of an operand decodes to zeros: its scale then says nothing.
bool RowIsZero(const QuantizedTensor& x, int64_t row) {
  if (x.comp != OccComp::kNone) {
    const int32_t* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
    if (offsets[row] != offsets[row + 1]) return false;
  }
  const uint8_t* codes = static_cast<const uint8_t*>(x.codes.data()) + row * x.code_row_bytes();
  const int sign_bits = x.elem == Elem::kE2M1 ? 0x88 : (x.elem == Elem::kInt8 ? 0 : 0x80);
  for (int64_t i = 0; i < x.code_row_bytes(); ++i) {
    if ((codes[i] & ~sign_bits & 0xFF) != 0) return false;
  }
  return true;
}

}  // namespace

Status CpuBackend::PrepareFold(QuantizeJob* job, ConstTensorView x, float* reciprocals) {
  QuantizedTensor* out = job->out;
  out->folded = job->context.fold != nullptr;
  if (!out->folded) return OkStatus();
  const QuantizedTensor& other = *job->context.fold;
  const int64_t depth = job->turned() ? x.rows : x.cols;
  const bool fits = other.per_row() ? other.rows == depth : other.block == Block::kTensor;
  const bool own_scale_fits = job->turned() || !out->per_column();
  if (!fits || !own_scale_fits || job->quant.pre.enabled || !other.has_codes) {
    return InvalidArgumentError(StrFormat(
        "Quantize: %s scales of (%lld, %lld) codes cannot be folded into %lld elements of a sum",
        BlockName(other.block, other.group).c_str(), static_cast<long long>(other.rows),
        static_cast<long long>(other.cols), static_cast<long long>(depth)));
  }
  RETURN_IF_ERROR(out->fold.Reserve(*this, depth * 4));
  float* fold = static_cast<float*>(out->fold.data());
  for (int64_t i = 0; i < depth; ++i) {
    fold[i] = Encs(other)[other.per_row() ? i : 0];
    // A group of zeros has enc 1.
    if (other.per_row() && fold[i] == 1.0f && RowIsZero(other, i)) fold[i] = kInfinity;
  }
  if (!Reciprocable(fold, depth)) return OkStatus();
  for (int64_t i = 0; i < depth; ++i) reciprocals[i] = 1.0f / fold[i];
  job->reciprocals = reciprocals;
  return OkStatus();
}

void CpuBackend::MeasureJobRow(const QuantizeJob& job, ConstTensorView x, int64_t row, int worker) {
  const float* source = x.f32() + row * x.cols;
  RowStats& stats = job.stats[row];
  const float* fold = job.fold();
  if (job.quant.pre.enabled) {
    MeasureClamped(source, x.cols, &stats);
  } else if (fold == nullptr && !job.out->per_column()) {
    MeasurePlain(source, x.cols, &stats);
  }
  if (job.out->per_column()) {
    uint32_t* columns = job.columns + worker * x.cols;
    if (job.reciprocals != nullptr) {
      return FoldedColumnAmaxFast(source, fold[row], job.reciprocals[row], columns, x.cols);
    }
    if (fold != nullptr) return FoldedColumnAmax(source, fold[row], columns, x.cols);
    return ColumnAmax(source, stats.low, stats.high, columns, x.cols);
  }
  if (fold == nullptr) return;
  // Division by one number is monotone: the largest quotient is that of the largest value.
  if (job.turned()) {
    MeasurePlain(source, x.cols, &stats);
    stats.amax_bits = formats::FloatBits(formats::BitsFloat(stats.amax_bits) / fold[row]);
  } else if (job.reciprocals != nullptr) {
    stats.amax_bits = FoldedAmaxFast(source, fold, job.reciprocals, x.cols);
  } else {
    stats.amax_bits = FoldedAmax(source, fold, x.cols);
  }
}

Status CpuBackend::MeasureRows(std::span<QuantizeJob> jobs, ConstTensorView x) {
  const int64_t threads = pool_.threads();
  const auto count = static_cast<int64_t>(jobs.size());
  const int64_t depth = std::max(x.rows, x.cols);
  RETURN_IF_ERROR(reciprocals_.Reserve(*this, count * depth * 4));
  RETURN_IF_ERROR(
      row_stats_.Reserve(*this, count * x.rows * static_cast<int64_t>(sizeof(RowStats))));
  RETURN_IF_ERROR(column_stats_.Reserve(*this, count * threads * x.cols * 4));
  for (int64_t i = 0; i < count; ++i) {
    QuantizeJob& job = jobs[static_cast<size_t>(i)];
    job.stats = static_cast<RowStats*>(row_stats_.data()) + i * x.rows;
    job.columns = static_cast<uint32_t*>(column_stats_.data()) + i * threads * x.cols;
    RETURN_IF_ERROR(PrepareFold(&job, x, static_cast<float*>(reciprocals_.data()) + i * depth));
    if (job.out->per_column()) std::fill(job.columns, job.columns + threads * x.cols, 0u);
    if (job.quant.pre.enabled && x.cols > 0) {
      RETURN_IF_ERROR(job.quant.pre.scope == OccScope::kTensor
                          ? TensorBounds(job.quant.pre, x, job.stats)
                          : TokenBounds(job.quant.pre, x, job.stats));
    } else {
      for (int64_t row = 0; row < x.rows; ++row) {
        job.stats[row] = {-kInfinity, kInfinity, 0, 0, 0, 0};
      }
    }
  }
  pool_.RunRanges(x.rows, RowGrain(x.cols), [&](int64_t first, int64_t last, int worker) {
    for (int64_t row = first; row < last; ++row) {
      for (const QuantizeJob& job : jobs) MeasureJobRow(job, x, row, worker);
    }
  });
  for (const QuantizeJob& job : jobs) {
    if (!job.out->per_column()) continue;
    for (int64_t worker = 1; worker < threads; ++worker) {
      const uint32_t* other = job.columns + worker * x.cols;
      for (int64_t c = 0; c < x.cols; ++c) job.columns[c] = std::max(job.columns[c], other[c]);
    }
  }
  return OkStatus();
}

Status CpuBackend::SetScales(const QuantizeJob& job) {
  const Quant& quant = job.quant;
  QuantizedTensor* out = job.out;
  const RowStats* stats = job.stats;
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
  if (out->per_column()) {
    for (int64_t c = 0; c < out->cols; ++c) {
      enc[c] = EncOf(quant, job.columns[c], &out->nonfinite_amax);
    }
  } else if (!out->per_row()) {
    enc[0] = EncOf(quant, tensor_bits, &out->nonfinite_amax);
  }
  return out->comp == OccComp::kNone ? OkStatus() : PlaceResidual(job, residual_bits);
}

Status CpuBackend::PlaceResidual(const QuantizeJob& job, uint32_t residual_bits) {
  QuantizedTensor* out = job.out;
  RETURN_IF_ERROR(out->residual_offsets.Reserve(*this, (out->rows + 1) * 4));
  int32_t* offsets = static_cast<int32_t*>(out->residual_offsets.data());
  for (int64_t row = 0; row < out->rows; ++row) {
    offsets[row] = static_cast<int32_t>(out->residual_count);
    out->residual_count += job.stats[row].residual_count;
  }
  offsets[out->rows] = static_cast<int32_t>(out->residual_count);
  const float amax = formats::BitsFloat(residual_bits);
  if (!formats::IsFinite(amax)) ++out->nonfinite_amax;
  if (out->comp == OccComp::kE4M3) out->residual_enc = formats::ScaleP2(amax, formats::kE4M3Max);
  // Room for twice the expected share, so that ordinary steps do not grow it.
  const double share = 4.0 * (1.0 - job.quant.pre.alpha);
  const int64_t expected = static_cast<int64_t>(share * static_cast<double>(out->rows * out->cols));
  const int64_t capacity = std::max(out->residual_count, expected);
  RETURN_IF_ERROR(out->residual_columns.Reserve(*this, capacity * 4));
  return out->residual_values.Reserve(*this, capacity * (out->comp == OccComp::kBf16 ? 4 : 1));
}

}  // namespace nibble::cpu
