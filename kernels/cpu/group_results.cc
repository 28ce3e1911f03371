// SPDX-License-Identifier: Apache-2.0
//
// GroupQuantizer's second half: corrected scales, the recast, the fallback, and results in the
// tensor's own layout.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_quantizer.h"
#include "kernels/cpu/quantize_loops.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scales.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 8192;

template <typename T>
Result<T*> Grow(Backend& backend, Buffer& buffer, int64_t count) {
  RETURN_IF_ERROR(buffer.Reserve(backend, count * static_cast<int64_t>(sizeof(T))));
  return static_cast<T*>(buffer.data());
}

int64_t RowGrain(int64_t cols) {
  return std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(1, cols));
}

}  // namespace

Status GroupQuantizer::DescribeResult(const Call& call) {
  QuantizedTensor* out = call.out;
  const Quant& quant = call.quant;
  out->rows = call.x.rows;
  out->cols = call.x.cols;
  out->elem = quant.recast_e4m3 ? Elem::kE4M3 : quant.elem;
  out->block = quant.block;
  out->group = quant.group;
  out->contraction = call.context.contraction;
  out->scale = quant.scale;
  out->comp = OccComp::kNone;
  out->folded = false;
  out->outer = quant.outer;
  out->outer_divisor = 1;
  out->has_group_scale = HasScaleCodes(quant.scale);
  out->has_codes = call.context.keep_codes;
  out->has_mask = quant.mask != Mask::kNone;
  out->recast_enc = quant.recast_e4m3 ? 1.0f : 0.0f;
  out->residual_count = 0;
  out->residual_enc = 1;
  if (out->has_mask) return out->mask.Reserve(backend_, call.x.size());
  return OkStatus();
}

Status GroupQuantizer::PrepareOutputs(Call* call, bool needs_decoded, TensorView decoded) {
  const int64_t size = call->x.size();
  QuantizedTensor* out = call->out;
  if (out->has_codes) {
    RETURN_IF_ERROR(out->codes.Reserve(backend_, out->rows * out->code_row_bytes()));
  }
  const bool eden = call->quant.scale == ScaleRule::kEden;
  if ((out->has_codes && shape_.turned) || eden || out->recast_enc != 0) {
    ASSIGN_OR_RETURN(call->bytes, Grow<uint8_t>(backend_, workspace_.codes, size));
  }
  if (eden) {
    const int64_t pairs = 2 * out->scale_count();
    ASSIGN_OR_RETURN(double* const sums, Grow<double>(backend_, workspace_.sums, pairs));
    std::fill_n(sums, pairs, 0.0);
  }
  if (out->has_mask) {
    call->mask = static_cast<uint8_t*>(out->mask.data());
    if (shape_.turned) {
      ASSIGN_OR_RETURN(call->mask, Grow<uint8_t>(backend_, workspace_.mask, size));
    }
  }
  if (needs_decoded || (decoded.data != nullptr && shape_.turned)) {
    ASSIGN_OR_RETURN(call->decoded, Grow<float>(backend_, workspace_.decoded, size));
  } else if (decoded.data != nullptr) {
    call->decoded = decoded.f32();
  }
  return OkStatus();
}

void RandomScaleWord(const QuantizeContext& context, int64_t group, uint32_t* word) {
  const uint64_t index = static_cast<uint64_t>(group);
  *word = context.replay != nullptr ? context.replay->Word(context.stream, index)
                                    : formats::RandomWord(context.seed, context.step,
                                                          context.stream, kScaleElement + index);
}

// MS-EDEN (arXiv 2601.22813): each scale times sum y^2 / sum y q over its correction group, then
// stochastically rounded to E4M3. Corrections over more than a scale group follow the published
// simulation, corrections of one group its kernel.
Status GroupQuantizer::CorrectScales(const Call& call) {
  const Quant& quant = call.quant;
  QuantizedTensor* out = call.out;
  const double* sums = static_cast<const double*>(workspace_.sums.data());
  float* scale = static_cast<float*>(out->group_scale.data());
  uint8_t* codes = static_cast<uint8_t*>(out->scale_codes.data());
  const bool simulation = quant.correction_group > quant.group;
  const int64_t together = quant.correction_group / quant.group;
  const bool drawn = quant.scale_round == ScaleRound::kStochastic;
  const int64_t groups = out->scale_count();
  float largest = 0;
  for (int64_t line = 0; line < shape_.lines; ++line) {
    for (int64_t g0 = 0; g0 < shape_.per_line; g0 += together) {
      const int64_t g1 = std::min(shape_.per_line, g0 + together);
      double numerator = 0, denominator = 0;
      for (int64_t g = g0; g < g1; ++g) {
        numerator += sums[2 * (line * shape_.per_line + g)];
        denominator += sums[2 * (line * shape_.per_line + g) + 1];
      }
      const float correction = formats::EdenCorrection(numerator, denominator);
      for (int64_t g = line * shape_.per_line + g0; g < line * shape_.per_line + g1; ++g) {
        scale[g] = simulation ? scale[g] * correction : formats::RoundBf16(scale[g] * correction);
        if (formats::IsFinite(scale[g])) largest = std::max(largest, scale[g]);
      }
    }
  }
  float global = 1.0f;
  float inverse = 1.0f;
  if (!simulation) {
    const float share = largest / quant.scale_max;
    // A subnormal share has no reciprocal.
    if (share > 0.0f) global = std::max(share, 0x1p-126f);
    inverse = 1.0f / global;
    static_cast<float*>(out->outer_scale.data())[0] = global;
  }
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t word = 0;
    if (drawn) RandomScaleWord(call.context, g, &word);
    const float wanted = scale[g] * inverse;
    if (!drawn) {
      scale[g] = formats::RoundE4M3(wanted);
    } else if (simulation) {
      scale[g] = formats::RoundSr24<formats::E4M3Grid>(wanted, word);
    } else {
      scale[g] = formats::EdenStochasticScale(wanted, word >> 16);
    }
    codes[g] = formats::E4M3CodeOfGridValue(scale[g]);
  }
  return OkStatus();
}

Result<double> GroupQuantizer::RelativeError(const Call& call) {
  ASSIGN_OR_RETURN(double* const sums, Grow<double>(backend_, workspace_.sums, 2 * shape_.lines));
  pool_.RunRanges(shape_.lines, Grain(), [&](int64_t first, int64_t last, int) {
    for (int64_t line = first; line < last; ++line) {
      double error = 0, norm = 0;
      float x[512];
      for (int64_t at = 0; at < shape_.depth; at += 512) {
        const int64_t n = std::min<int64_t>(512, shape_.depth - at);
        Load(call, line, at, n, x);
        for (int64_t i = 0; i < n; ++i) {
          const double value = static_cast<double>(x[i]);
          const double got = static_cast<double>(call.decoded[line * shape_.depth + at + i]);
          error += (got - value) * (got - value);
          norm += value * value;
        }
      }
      sums[2 * line] = error;
      sums[2 * line + 1] = norm;
    }
  });
  double error = 0, norm = 0;
  for (int64_t line = 0; line < shape_.lines; ++line) {
    error += sums[2 * line];
    norm += sums[2 * line + 1];
  }
  return norm > 0 ? std::sqrt(error / norm) : 0.0;
}

// The decoded values once more, as per-tensor E4M3 under the largest power of two.
Status GroupQuantizer::Recast(const Call& call) {
  const int64_t size = call.x.size();
  uint32_t bits = 0;
  for (int64_t i = 0; i < size; ++i) bits = formats::AmaxUpdate(bits, call.decoded[i]);
  const float enc = formats::ScaleP2(formats::BitsFloat(bits), formats::kE4M3Max);
  call.out->recast_enc = enc;
  pool_.RunRanges(size, kElementsPerChunk, [&](int64_t first, int64_t last, int) {
    float* values = call.decoded + first;
    const int64_t n = last - first;
    ScaleRun(false, enc, values, values, n);
    RoundRun(Elem::kE4M3, Round::kEven, values, nullptr, values, n);
    CodesOfRun(Elem::kE4M3, values, call.bytes + first, n);
    ScaleRun(true, enc, values, values, n);
  });
  return OkStatus();
}

Status GroupQuantizer::Deliver(const Call& call, TensorView decoded) {
  QuantizedTensor* out = call.out;
  const int64_t rows = out->rows, cols = out->cols;
  const uint8_t* bytes = call.bytes;
  uint8_t* turned = nullptr;
  if (out->has_codes && bytes != nullptr && shape_.turned) {
    ASSIGN_OR_RETURN(turned, Grow<uint8_t>(backend_, workspace_.turned_codes, rows * cols));
  }
  pool_.RunRanges(rows, RowGrain(cols), [&](int64_t first, int64_t last, int) {
    if (turned != nullptr) TransposeBytes(bytes, cols, rows, first, last, turned);
    const uint8_t* codes = turned != nullptr ? turned : bytes;
    if (out->has_codes && codes != nullptr) {
      for (int64_t row = first; row < last; ++row) {
        PackCodes(out->elem, codes + row * cols,
                  static_cast<uint8_t*>(out->codes.data()) + row * out->code_row_bytes(), cols);
      }
    }
    if (call.mask != nullptr && shape_.turned) {
      TransposeBytes(call.mask, cols, rows, first, last, static_cast<uint8_t*>(out->mask.data()));
    }
    if (decoded.data == nullptr || call.decoded == decoded.f32()) return;
    if (shape_.turned) {
      TransposeFloats(call.decoded, cols, rows, first, last, decoded.f32());
    } else {
      std::copy_n(call.decoded + first * cols, (last - first) * cols, decoded.f32() + first * cols);
    }
  });
  return OkStatus();
}

Status GroupQuantizer::Quantize(const Quant& quant, const QuantizeContext& context,
                                ConstTensorView x, const RowStats* bounds, QuantizedTensor* out,
                                TensorView decoded, bool* fell_back) {
  *fell_back = false;
  RETURN_IF_ERROR(CheckGroupQuant(quant, context));
  Call call{quant, context, x, out, GroupRuleOf(quant)};
  shape_ = ShapeOf(quant.block, context.contraction, quant.outer, quant.group, x.rows, x.cols);
  RETURN_IF_ERROR(DescribeResult(call));
  RETURN_IF_ERROR(PrepareSource(&call, bounds));
  RETURN_IF_ERROR(Measure(call));
  RETURN_IF_ERROR(SetOuters(call));
  RETURN_IF_ERROR(SetScales(call));
  const bool needs_decoded = quant.fallback_error > 0 || quant.recast_e4m3;
  RETURN_IF_ERROR(PrepareOutputs(&call, needs_decoded, decoded));
  const auto for_lines = [&](auto&& body) {
    pool_.RunRanges(shape_.lines, Grain(), [&](int64_t first, int64_t last, int) {
      for (int64_t line = first; line < last; ++line) body(line);
    });
  };
  for_lines([&](int64_t line) { EncodeLine(call, line); });
  if (quant.scale == ScaleRule::kEden) {
    RETURN_IF_ERROR(CorrectScales(call));
    if (call.decoded != nullptr) {
      for_lines([&](int64_t line) {
        const int64_t start = line * shape_.depth;
        DecodeLine(*out, line, call.bytes + start, call.decoded + start);
      });
    }
  }
  if (quant.fallback_error > 0) {
    ASSIGN_OR_RETURN(const double error, RelativeError(call));
    // A NaN is above every threshold.
    *fell_back = !(error <= quant.fallback_error);
    if (*fell_back) return OkStatus();
  }
  if (quant.recast_e4m3) RETURN_IF_ERROR(Recast(call));
  return Deliver(call, decoded);
}

Status GroupQuantizer::Dequantize(const QuantizedTensor& x, TensorView decoded) {
  shape_ = ShapeOf(x.block, x.contraction, x.outer, x.group, x.rows, x.cols);
  const int64_t rows = x.rows, cols = x.cols;
  ASSIGN_OR_RETURN(uint8_t* const bytes, Grow<uint8_t>(backend_, workspace_.codes, rows * cols));
  const uint8_t* packed = static_cast<const uint8_t*>(x.codes.data());
  pool_.RunRanges(rows, RowGrain(cols), [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      UnpackCodes(x.elem, packed + row * x.code_row_bytes(), bytes + row * cols, cols);
    }
  });
  uint8_t* lines = bytes;
  float* target = decoded.f32();
  if (shape_.turned) {
    ASSIGN_OR_RETURN(lines, Grow<uint8_t>(backend_, workspace_.turned_codes, rows * cols));
    ASSIGN_OR_RETURN(target, Grow<float>(backend_, workspace_.decoded, rows * cols));
  }
  pool_.RunRanges(shape_.lines, Grain(), [&](int64_t first, int64_t last, int) {
    if (shape_.turned) TransposeBytes(bytes, rows, cols, first, last, lines);
    for (int64_t line = first; line < last; ++line) {
      const int64_t start = line * shape_.depth;
      DecodeLine(x, line, lines + start, target + start);
    }
  });
  if (!shape_.turned) return OkStatus();
  pool_.RunRanges(rows, RowGrain(cols), [&](int64_t first, int64_t last, int) {
    TransposeFloats(target, cols, rows, first, last, decoded.f32());
  });
  return OkStatus();
}

Status CpuBackend::QuantizeGroups(const Quant& quant, const QuantizeContext& context,
                                  ConstTensorView x, QuantizedTensor* out, TensorView decoded) {
  const RowStats* bounds = nullptr;
  if (quant.pre.enabled && x.size() > 0) {
    RETURN_IF_ERROR(row_stats_.Reserve(*this, x.rows * static_cast<int64_t>(sizeof(RowStats))));
    RowStats* const rows = static_cast<RowStats*>(row_stats_.data());
    RETURN_IF_ERROR(quant.pre.scope == OccScope::kTensor ? TensorBounds(quant.pre, x, rows)
                                                         : TokenBounds(quant.pre, x, rows));
    bounds = rows;
  }
  bool fell_back = false;
  GroupQuantizer quantizer(this, &pool_, &groups_);
  RETURN_IF_ERROR(quantizer.Quantize(quant, context, x, bounds, out, decoded, &fell_back));
  if (!fell_back) return OkStatus();
  Quant plain;  // BF16, the whole tensor
  plain.source = quant.source;
  const int64_t nonfinite = out->nonfinite_amax;
  RETURN_IF_ERROR(Quantize(plain, context, x, out, decoded));
  out->nonfinite_amax = nonfinite;
  return OkStatus();
}

}  // namespace nibble::cpu
