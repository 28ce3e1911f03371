// SPDX-License-Identifier: Apache-2.0
//
// Quantize for outer scales (tensor, row): measure, scales, encode, each one kernel over rows, and
// Dequantize. Equal bit for bit to the CPU: maxima and counts do not depend on an order, outliers
// are written in ascending columns.
#include <algorithm>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/scales.h"

namespace nibble::cuda {
namespace {

__global__ void MeasureRowsKernel(const float* x, int64_t rows, int64_t cols, RowStats* stats) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float low = stats[row].low;
    const float high = stats[row].high;
    uint32_t amax = 0, residual = 0;
    int32_t count = 0;
    for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
      const float value = formats::RoundBf16(x[row * cols + i]);
      const float clamped = formats::OccClamp(value, low, high);
      amax = formats::AmaxUpdate(amax, clamped);
      residual = formats::AmaxUpdate(residual, value - clamped);
      count += static_cast<int32_t>(value < low) + static_cast<int32_t>(value > high);
    }
    const uint32_t row_amax = BlockMax(amax);
    const uint32_t row_residual = BlockMax(residual);
    const int32_t row_count = BlockSum(count);
    if (threadIdx.x == 0) {
      stats[row].amax_bits = row_amax;
      stats[row].residual_amax_bits = row_residual;
      stats[row].residual_count = row_count;
    }
  }
}

__device__ float EncOf(ScaleRule rule, float max, uint32_t amax_bits) {
  const float amax = formats::BitsFloat(amax_bits);
  switch (rule) {
    case ScaleRule::kF32:
      return formats::ScaleF32(amax, max);
    case ScaleRule::kP2:
      return formats::ScaleP2(amax, max);
    case ScaleRule::kCurrent:
      return formats::ScaleCurrent(amax, max, false);
    case ScaleRule::kCurrentP2:
      return formats::ScaleCurrent(amax, max, true);
    default:
      return 1.0f;
  }
}

// What the host learns: sizes of buffers and counters.
struct ScaleSummary {
  int32_t residual_count;
  int32_t nonfinite;
  uint32_t residual_amax_bits;
};

// One block: scales of all groups, running offsets of the outliers, totals.
__global__ void ScalesKernel(ScaleRule rule, float max, bool per_row, const RowStats* stats,
                             int64_t rows, float* enc, int32_t* offsets, ScaleSummary* summary) {
  uint32_t tensor = 0, residual = 0;
  int32_t nonfinite = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    const uint32_t bits = stats[row].amax_bits;
    tensor = bits > tensor ? bits : tensor;
    const uint32_t r = stats[row].residual_amax_bits;
    residual = r > residual ? r : residual;
    if (per_row) {
      enc[row] = EncOf(rule, max, bits);
      nonfinite += formats::IsFinite(formats::BitsFloat(bits)) ? 0 : 1;
    }
  }
  tensor = BlockMax(tensor);
  residual = BlockMax(residual);
  nonfinite = BlockSum(nonfinite);
  if (threadIdx.x != 0) return;
  if (!per_row) {
    enc[0] = EncOf(rule, max, tensor);
    nonfinite = formats::IsFinite(formats::BitsFloat(tensor)) ? 0 : 1;
  }
  int32_t next = 0;
  if (offsets != nullptr) {
    for (int64_t row = 0; row < rows; ++row) {
      offsets[row] = next;
      next += stats[row].residual_count;
    }
    offsets[rows] = next;
    nonfinite += formats::IsFinite(formats::BitsFloat(residual)) ? 0 : 1;
  }
  *summary = {next, nonfinite, residual};
}

struct EncodeTask {
  Elem elem;
  Round round;
  ScaleRule scale;
  OccComp comp;
  RandomSource random;
  bool per_row;
  float residual_enc;
  int64_t rows, cols, code_row_bytes;
  const float* x;
  const RowStats* stats;
  const float* enc;
  uint8_t* codes;  // nullptr: not kept
  float* decoded;  // nullptr: not wanted
  const int32_t* offsets;
  int32_t* columns;
  void* values;
};

// The value added to the decoded element for an outlier, and its stored form.
__device__ float StoreResidual(const EncodeTask& t, int32_t at, int64_t col, float residual) {
  t.columns[at] = static_cast<int32_t>(col);
  if (t.comp == OccComp::kE4M3) {
    const uint8_t code = formats::EncodeE4M3(residual * t.residual_enc);
    static_cast<uint8_t*>(t.values)[at] = code;
    return formats::DecodeE4M3(code) / t.residual_enc;
  }
  const float rounded = formats::RoundBf16(residual);
  static_cast<float*>(t.values)[at] = rounded;
  return rounded;
}

// Position of this thread's outlier among those of the block's columns, in column order.
__device__ int32_t OutlierRank(bool outlier, int32_t* total) {
  __shared__ int32_t warp_counts[kWarps];
  const unsigned mask = __ballot_sync(0xFFFFFFFFu, outlier);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  __syncthreads();
  if (lane == 0) warp_counts[warp] = __popc(mask);
  __syncthreads();
  int32_t before = 0;
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += warp_counts[w];
    *total += warp_counts[w];
  }
  return before + __popc(mask & ((1u << lane) - 1u));
}

// One block per row, kThreads columns at a time. For E2M1 the even thread of a pair packs the byte.
__global__ void EncodeRowsKernel(EncodeTask t) {
  for (int64_t row = blockIdx.x; row < t.rows; row += gridDim.x) {
    const float enc = t.enc[t.per_row ? row : 0];
    const float low = t.stats[row].low;
    const float high = t.stats[row].high;
    int32_t next = t.offsets != nullptr ? t.offsets[row] : 0;
    for (int64_t first = 0; first < t.cols; first += kThreads) {
      const int64_t col = first + threadIdx.x;
      const bool live = col < t.cols;
      const float value = live ? formats::RoundBf16(t.x[row * t.cols + col]) : 0.0f;
      const float clamped = formats::OccClamp(value, low, high);
      const float grid = RoundToGrid(t.elem, t.round, t.random, row * t.cols + col, clamped * enc);
      if (t.codes != nullptr) {
        const unsigned code = CodeOf(t.elem, grid);
        const unsigned neighbour = __shfl_down_sync(0xFFFFFFFFu, code, 1);
        uint8_t* row_codes = t.codes + row * t.code_row_bytes;
        if (t.elem != Elem::kE2M1) {
          if (live) row_codes[col] = static_cast<uint8_t>(code);
        } else if (live && col % 2 == 0) {
          const unsigned odd = col + 1 < t.cols ? neighbour : 0u;
          row_codes[col / 2] =
              formats::PackE2M1(static_cast<uint8_t>(code), static_cast<uint8_t>(odd));
        }
      }
      float decoded = DecodeGrid(t.scale, enc, grid);
      if (t.offsets != nullptr) {
        const bool outlier = live && (value < low || value > high);
        int32_t total = 0;
        const int32_t rank = OutlierRank(outlier, &total);
        if (outlier) decoded += StoreResidual(t, next + rank, col, value - clamped);
        next += total;
      }
      if (live && t.decoded != nullptr) t.decoded[row * t.cols + col] = decoded;
    }
  }
}

struct DecodeOp {
  Elem elem;
  ScaleRule scale;
  bool per_row;
  int64_t cols, code_row_bytes;
  const uint8_t* codes;
  const float* enc;
  float* decoded;
  __device__ void operator()(int64_t i) const {
    const int64_t row = i / cols;
    const int64_t col = i % cols;
    const uint8_t* row_codes = codes + row * code_row_bytes;
    uint8_t code = 0;
    if (elem == Elem::kE2M1) {
      code = col % 2 == 0 ? row_codes[col / 2] & 15u : row_codes[col / 2] >> 4;
    } else {
      code = row_codes[col];
    }
    decoded[i] = DecodeGrid(scale, enc[per_row ? row : 0], GridOf(elem, code));
  }
};

struct AddResidualOp {
  OccComp comp;
  float residual_enc;
  int64_t cols;
  const int32_t *offsets, *columns;
  const void* values;
  float* decoded;
  __device__ void operator()(int64_t row) const {
    for (int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
      const float residual =
          comp == OccComp::kE4M3
              ? formats::DecodeE4M3(static_cast<const uint8_t*>(values)[i]) / residual_enc
              : static_cast<const float*>(values)[i];
      decoded[row * cols + columns[i]] += residual;
    }
  }
};

Status CheckQuant(const Quant& quant, const QuantizeContext& context) {
  const bool elem =
      quant.elem == Elem::kE2M1 || quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2;
  const bool scale = quant.scale == ScaleRule::kF32 || quant.scale == ScaleRule::kP2 ||
                     quant.scale == ScaleRule::kCurrent || quant.scale == ScaleRule::kCurrentP2;
  const bool block = quant.block == Block::kTensor || quant.block == Block::kToken ||
                     quant.block == Block::kOutputChannel;
  const bool plain = quant.source == Source::kHp && quant.rotation.size == 0 && !quant.fold &&
                     quant.mask == Mask::kNone && quant.split == Split::kNone &&
                     !quant.alternatives.enabled() && !quant.recast_e4m3 && quant.window == 1 &&
                     quant.fallback_error == 0 && quant.pre.comp != OccComp::kWide &&
                     context.contraction == Axis::kCols && context.fold == nullptr &&
                     context.round_source && context.history == nullptr &&
                     context.replay == nullptr;
  if (elem && scale && block && plain) return OkStatus();
  return UnimplementedError(
      "Quantize: the CUDA backend builds e2m1, e4m3 and e5m2 with outer "
      "scales f32, p2 and cur; use backend cpu for this recipe");
}

}  // namespace

Status CudaBackend::SetScales(const Quant& quant, ConstTensorView x, RowStats* stats,
                              QuantizedTensor* out) {
  MeasureRowsKernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(x.f32(), x.rows, x.cols, stats);
  RETURN_IF_ERROR(LaunchStatus("Quantize"));
  RETURN_IF_ERROR(out->enc.Reserve(*this, out->scale_count() * 4));
  const bool residual = out->comp != OccComp::kNone;
  int32_t* offsets = nullptr;
  if (residual) {
    RETURN_IF_ERROR(out->residual_offsets.Reserve(*this, (out->rows + 1) * 4));
    offsets = static_cast<int32_t*>(out->residual_offsets.data());
  }
  RETURN_IF_ERROR(words_.Reserve(*this, static_cast<int64_t>(sizeof(ScaleSummary))));
  ScalesKernel<<<1, kThreads, 0, stream_>>>(quant.scale, quant.scale_max, out->per_row(), stats,
                                            x.rows, static_cast<float*>(out->enc.data()), offsets,
                                            static_cast<ScaleSummary*>(words_.data()));
  RETURN_IF_ERROR(LaunchStatus("Quantize"));
  ScaleSummary summary{};
  RETURN_IF_ERROR(CopyOut(&summary, words_.data(), sizeof(summary)));
  out->nonfinite_amax = summary.nonfinite;
  out->residual_count = summary.residual_count;
  out->residual_enc = 1.0f;
  if (!residual) return OkStatus();
  if (out->comp == OccComp::kE4M3) {
    out->residual_enc =
        formats::ScaleP2(formats::BitsFloat(summary.residual_amax_bits), formats::kE4M3Max);
  }
  const double share = 4.0 * (1.0 - quant.pre.alpha);
  const int64_t expected = static_cast<int64_t>(share * static_cast<double>(x.size()));
  const int64_t capacity = std::max(out->residual_count, expected);
  RETURN_IF_ERROR(out->residual_columns.Reserve(*this, capacity * 4));
  return out->residual_values.Reserve(*this, capacity * (out->comp == OccComp::kE4M3 ? 1 : 4));
}

Status CudaBackend::Encode(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                           const RowStats* stats, QuantizedTensor* out, TensorView decoded) {
  if (out->has_codes) RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
  EncodeTask task{};
  task.elem = quant.elem;
  task.round = quant.round;
  task.scale = quant.scale;
  task.comp = out->comp;
  task.random = {context.seed, context.step, context.stream};
  task.per_row = out->per_row();
  task.residual_enc = out->residual_enc;
  task.rows = x.rows;
  task.cols = x.cols;
  task.code_row_bytes = out->code_row_bytes();
  task.x = x.f32();
  task.stats = stats;
  task.enc = static_cast<const float*>(out->enc.data());
  task.codes = out->has_codes ? static_cast<uint8_t*>(out->codes.data()) : nullptr;
  task.decoded = decoded.data == nullptr ? nullptr : decoded.f32();
  if (out->comp != OccComp::kNone) {
    task.offsets = static_cast<const int32_t*>(out->residual_offsets.data());
    task.columns = static_cast<int32_t*>(out->residual_columns.data());
    task.values = out->residual_values.data();
  }
  EncodeRowsKernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(task);
  return LaunchStatus("Quantize");
}

Status CudaBackend::Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                             QuantizedTensor* out, TensorView decoded) {
  RETURN_IF_ERROR(CheckView("Quantize", "x", x, x.rows, x.cols));
  if (decoded.data != nullptr) {
    RETURN_IF_ERROR(CheckView("Quantize", "decoded", decoded, x.rows, x.cols));
  }
  RETURN_IF_ERROR(CheckQuant(quant, context));
  out->rows = x.rows;
  out->cols = x.cols;
  out->elem = quant.elem;
  out->block = quant.block;
  out->scale = quant.scale;
  out->comp = quant.pre.enabled ? quant.pre.comp : OccComp::kNone;
  out->has_codes = context.keep_codes;
  if (x.size() == 0) return OkStatus();
  RETURN_IF_ERROR(row_stats_.Reserve(*this, x.rows * static_cast<int64_t>(sizeof(RowStats))));
  RowStats* stats = static_cast<RowStats*>(row_stats_.data());
  RETURN_IF_ERROR(OccBounds(quant, x, stats));
  RETURN_IF_ERROR(SetScales(quant, x, stats, out));
  return Encode(quant, context, x, stats, out, decoded);
}

Status CudaBackend::Dequantize(const QuantizedTensor& x, TensorView decoded) {
  RETURN_IF_ERROR(CheckView("Dequantize", "decoded", decoded, x.rows, x.cols));
  if (!x.has_codes) {
    return FailedPreconditionError("Dequantize: the codes were not kept (keep_codes was false)");
  }
  RETURN_IF_ERROR(ForEach(stream_, "Dequantize", decoded.size(),
                          DecodeOp{x.elem, x.scale, x.per_row(), x.cols, x.code_row_bytes(),
                                   static_cast<const uint8_t*>(x.codes.data()),
                                   static_cast<const float*>(x.enc.data()), decoded.f32()}));
  if (x.comp == OccComp::kNone || x.residual_count == 0) return OkStatus();
  return ForEach(stream_, "Dequantize", x.rows,
                 AddResidualOp{x.comp, x.residual_enc, x.cols,
                               static_cast<const int32_t*>(x.residual_offsets.data()),
                               static_cast<const int32_t*>(x.residual_columns.data()),
                               x.residual_values.data(), decoded.f32()});
}

}  // namespace nibble::cuda
