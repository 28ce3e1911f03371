// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/group_quantizer.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/cpu/quantize_loops.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scales.h"
#include "kernels/formats/surrogates.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kRun = 512;  // elements handled at a time
constexpr int64_t kElementsPerChunk = 8192;
constexpr int64_t kScalesPerChunk = 512;

template <typename T>
Result<T*> Grow(Backend& backend, Buffer& buffer, int64_t count) {
  RETURN_IF_ERROR(buffer.Reserve(backend, count * static_cast<int64_t>(sizeof(T))));
  return static_cast<T*>(buffer.data());
}

// Calls body(position, n) for runs of at most kRun elements of [0, depth).
template <typename Body>
void ForRuns(int64_t depth, Body&& body) {
  for (int64_t first = 0; first < depth; first += kRun) body(first, std::min(kRun, depth - first));
}

uint32_t AmaxBitsOf(double statistic) {
  return formats::FloatBits(static_cast<float>(statistic)) & formats::kMagnitudeBits;
}
double AmaxOfBits(uint32_t bits) { return static_cast<double>(formats::BitsFloat(bits)); }

bool Stochastic(Round round) { return round == Round::kSr24 || round == Round::kTe8; }

}  // namespace

int64_t GroupWorkspace::size_bytes() const {
  int64_t total = 0;
  for (const Buffer* buffer : {&source, &statistics, &line_statistics, &outers, &sums, &codes,
                               &turned_codes, &decoded, &mask}) {
    total += buffer->capacity_bytes();
  }
  return total;
}

bool NeedsGroupQuantizer(const Quant& quant, const QuantizeContext& context) {
  if (!quant.has_scale() || quant.source == Source::kReuse) return false;
  const bool blocks = quant.block == Block::kGroup || quant.block == Block::kTile;
  const bool elem = quant.elem == Elem::kE1M2 || quant.elem == Elem::kE3M0 ||
                    quant.elem == Elem::kInt4C || quant.elem == Elem::kInt4;
  const bool rule = HasScaleCodes(quant.scale) || quant.scale == ScaleRule::kQuest ||
                    quant.scale == ScaleRule::kDelayed || quant.window > 1;
  const bool fp8 = quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2;
  const bool more = quant.mask != Mask::kNone || quant.recast_e4m3 || quant.fallback_error > 0 ||
                    !context.round_source || context.replay != nullptr || quant.smooth_max > 0;
  return blocks || elem || rule || (fp8 && quant.round != Round::kEven) || more;
}

bool HoldsGroups(const QuantizedTensor& x) {
  return x.has_group_scale || x.recast_enc != 0 || x.block == Block::kGroup ||
         x.block == Block::kTile || x.scale == ScaleRule::kQuest || x.elem == Elem::kE1M2 ||
         x.elem == Elem::kE3M0 || x.elem == Elem::kInt4C || x.elem == Elem::kInt4;
}

GroupQuantizer::Shape GroupQuantizer::ShapeOf(Block block, Axis contraction, Outer outer,
                                              int64_t group, int64_t rows, int64_t cols) {
  Shape shape;
  shape.block = block;
  const bool by_rows = contraction == Axis::kRows;
  shape.turned = block == Block::kInputChannel ||
                 (by_rows && (block == Block::kOutputChannel || block == Block::kGroup));
  shape.lines = shape.turned ? cols : rows;
  shape.depth = shape.turned ? rows : cols;
  const bool grouped = block == Block::kGroup || block == Block::kTile;
  shape.extent = grouped ? group : std::max<int64_t>(1, shape.depth);
  shape.per_line = (shape.depth + shape.extent - 1) / shape.extent;
  shape.tile = block == Block::kTile ? group : 1;
  shape.outers_per_line = outer == Outer::k128 ? (shape.depth + 127) / 128 : 0;
  return shape;
}

int64_t GroupQuantizer::Shape::Group(int64_t line, int64_t position) const {
  if (block == Block::kTensor) return 0;
  return line / tile * per_line + position / extent;
}

int64_t GroupQuantizer::Shape::GroupEnd(int64_t position, int64_t last) const {
  return std::min(last, (position / extent + 1) * extent);
}

int64_t GroupQuantizer::Grain() const {
  const int64_t lines =
      std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(1, shape_.depth));
  return (lines + shape_.tile - 1) / shape_.tile * shape_.tile;
}

void GroupQuantizer::Load(const Call& call, int64_t line, int64_t first, int64_t n,
                          float* run) const {
  const float* from = call.source + line * shape_.depth + first;
  if (call.round_on_load) {
    RoundBf16Run(from, run, n);
  } else {
    std::copy_n(from, n, run);
  }
}

Status GroupQuantizer::PrepareSource(Call* call, const RowStats* bounds) {
  call->source = call->x.f32();
  call->round_on_load = call->context.round_source;
  clamped_infinities_ = 0;
  if (!shape_.turned && bounds == nullptr) return OkStatus();
  const int64_t rows = call->x.rows, cols = call->x.cols;
  const float* x = call->x.f32();
  if (bounds != nullptr) {
    ASSIGN_OR_RETURN(float* const clamped, Grow<float>(backend_, workspace_.decoded, rows * cols));
    std::atomic<int64_t> infinities{0};
    pool_.RunRanges(rows, std::max<int64_t>(1, kElementsPerChunk / cols),
                    [&](int64_t first, int64_t last, int) {
                      int64_t found = 0;
                      for (int64_t i = first * cols; i < last * cols; ++i) {
                        const RowStats& row = bounds[i / cols];
                        const float value = call->round_on_load ? formats::RoundBf16(x[i]) : x[i];
                        clamped[i] = formats::OccClamp(value, row.low, row.high);
                        found += !formats::IsFinite(value) && formats::IsFinite(clamped[i]) ? 1 : 0;
                      }
                      infinities += found;
                    });
    clamped_infinities_ = infinities;
    x = clamped;
  }
  ASSIGN_OR_RETURN(float* const source, Grow<float>(backend_, workspace_.source, rows * cols));
  pool_.RunRanges(shape_.lines, Grain(), [&](int64_t first, int64_t last, int) {
    if (shape_.turned) {
      TransposeFloats(x, rows, cols, first, last, source);
    } else {
      std::copy_n(x + first * cols, (last - first) * cols, source + first * cols);
    }
  });
  call->source = source;
  return OkStatus();
}

void GroupQuantizer::MeasureLine(const Call& call, int64_t line, double* statistics) const {
  const Statistic statistic = StatisticOf(call.quant.scale);
  float run[kRun];
  for (int64_t g = 0; g < shape_.per_line; ++g) {
    const int64_t first = g * shape_.extent;
    const int64_t last = shape_.GroupEnd(first, shape_.depth);
    uint32_t bits = 0;
    double squares = 0;
    for (int64_t at = first; at < last; at += kRun) {
      const int64_t n = std::min(kRun, last - at);
      Load(call, line, at, n, run);
      if (statistic == Statistic::kAmax) bits = std::max(bits, RunAmaxBits(run, n));
      if (statistic == Statistic::kRms) squares += RunSumOfSquares(run, n);
      if (statistic == Statistic::kDeviation) statistics[g] = RunDeviation(run, n);
    }
    if (statistic == Statistic::kAmax) statistics[g] = AmaxOfBits(bits);
    if (statistic == Statistic::kRms) {
      statistics[g] = std::sqrt(squares / static_cast<double>(last - first));
    }
  }
}

Status GroupQuantizer::Measure(const Call& call) {
  const int64_t groups = call.out->scale_count();
  ASSIGN_OR_RETURN(double* const result, Grow<double>(backend_, workspace_.statistics, groups));
  const bool shared = shape_.block == Block::kTensor || shape_.block == Block::kTile;
  double* lines = result;
  if (shared) {
    ASSIGN_OR_RETURN(
        lines, Grow<double>(backend_, workspace_.line_statistics, shape_.lines * shape_.per_line));
  }
  pool_.RunRanges(shape_.lines, Grain(), [&](int64_t first, int64_t last, int) {
    for (int64_t line = first; line < last; ++line) {
      MeasureLine(call, line, lines + line * shape_.per_line);
    }
  });
  if (shared) {
    std::fill_n(result, groups, 0.0);
    for (int64_t line = 0; line < shape_.lines; ++line) {
      for (int64_t g = 0; g < shape_.per_line; ++g) {
        double& group = result[shape_.Group(line, g * shape_.extent)];
        const uint32_t bits = AmaxBitsOf(lines[line * shape_.per_line + g]);
        group = AmaxOfBits(std::max(AmaxBitsOf(group), bits));
      }
    }
  }
  // An infinity that clamping hides from the amax still counts.
  call.out->nonfinite_amax = clamped_infinities_;
  for (int64_t g = 0; g < groups; ++g) {
    if (!std::isfinite(result[g])) ++call.out->nonfinite_amax;
  }
  return call.quant.smooth_max > 0 ? SmoothMaxima(call) : OkStatus();
}

// amax becomes sum p |x|, p = softmax(T * grid max * |x| / amax) over the group.
Status GroupQuantizer::SmoothMaxima(const Call& call) {
  auto* const statistics = static_cast<double*>(workspace_.statistics.data());
  const double grid_max = static_cast<double>(ElemMax(call.quant.elem));
  // Per line and group: the sums of e^(..) and of e^(..) |x|.
  ASSIGN_OR_RETURN(double* const lines, Grow<double>(backend_, workspace_.line_statistics,
                                                     2 * shape_.lines * shape_.per_line));
  pool_.RunRanges(shape_.lines, Grain(), [&](int64_t first, int64_t last, int) {
    float run[kRun];
    for (int64_t line = first; line < last; ++line) {
      double* pair = lines + 2 * line * shape_.per_line;
      for (int64_t g = 0; g < shape_.per_line; ++g, pair += 2) {
        pair[0] = pair[1] = 0;
        const int64_t begin = g * shape_.extent;
        const int64_t end = shape_.GroupEnd(begin, shape_.depth);
        const double amax = statistics[shape_.Group(line, begin)];
        if (!(amax > 0) || !std::isfinite(amax)) continue;
        for (int64_t at = begin; at < end; at += kRun) {
          const int64_t n = std::min(kRun, end - at);
          Load(call, line, at, n, run);
          for (int64_t i = 0; i < n; ++i) {
            const double a = static_cast<double>(formats::Magnitude(run[i]));
            const double p =
                formats::SoftmaxWeight(call.quant.smooth_max, grid_max * (a / amax) - grid_max);
            pair[0] += p;
            pair[1] += p * a;
          }
        }
      }
    }
  });
  ASSIGN_OR_RETURN(double* const sums,
                   Grow<double>(backend_, workspace_.sums, 2 * call.out->scale_count()));
  std::fill_n(sums, 2 * call.out->scale_count(), 0.0);
  for (int64_t line = 0; line < shape_.lines; ++line) {
    for (int64_t g = 0; g < shape_.per_line; ++g) {
      double* const sum = sums + 2 * shape_.Group(line, g * shape_.extent);
      const double* const pair = lines + 2 * (line * shape_.per_line + g);
      sum[0] += pair[0];
      sum[1] += pair[1];
    }
  }
  for (int64_t g = 0; g < call.out->scale_count(); ++g) {
    if (sums[2 * g] > 0) statistics[g] = sums[2 * g + 1] / sums[2 * g];
  }
  return OkStatus();
}

Status GroupQuantizer::SetOuters(const Call& call) {
  if (!HasScaleCodes(call.quant.scale)) return OkStatus();
  QuantizedTensor* out = call.out;
  const int64_t count = out->outer_count();
  ASSIGN_OR_RETURN(float* const outer, Grow<float>(backend_, out->outer_scale, count));
  ASSIGN_OR_RETURN(formats::OuterScale* const scales,
                   Grow<formats::OuterScale>(backend_, workspace_.outers, count));
  const double* statistics = static_cast<const double*>(workspace_.statistics.data());
  const int64_t groups = out->scale_count();
  if (shape_.outers_per_line == 0) {
    uint32_t bits = 0;
    for (int64_t g = 0; g < groups; ++g) bits = std::max(bits, AmaxBitsOf(statistics[g]));
    const float amax = HeldAmax(call.quant, call.context, formats::BitsFloat(bits));
    scales[0] = OuterScaleOf(call.rule, amax);
  } else {
    const int64_t per_outer = 128 / shape_.extent;
    for (int64_t line = 0; line < shape_.lines; ++line) {
      for (int64_t o = 0; o < shape_.outers_per_line; ++o) {
        uint32_t bits = 0;
        const int64_t last = std::min(shape_.per_line, (o + 1) * per_outer);
        for (int64_t g = o * per_outer; g < last; ++g) {
          bits = std::max(bits, AmaxBitsOf(statistics[line * shape_.per_line + g]));
        }
        scales[line * shape_.outers_per_line + o] =
            OuterScaleOf(call.rule, formats::BitsFloat(bits));
      }
    }
  }
  for (int64_t o = 0; o < count; ++o) outer[o] = scales[o].scale;
  out->outer_divisor = scales[0].divisor;
  return OkStatus();
}

void GroupQuantizer::StoreScale(const Call& call, int64_t group, const formats::GroupScale& scale) {
  static_cast<float*>(call.out->enc.data())[group] = scale.enc;
  if (!call.out->has_group_scale) return;
  static_cast<float*>(call.out->group_scale.data())[group] = scale.scale;
  static_cast<uint8_t*>(call.out->scale_codes.data())[group] = scale.code;
}

Status GroupQuantizer::SetScales(const Call& call) {
  QuantizedTensor* out = call.out;
  const Quant& quant = call.quant;
  const int64_t groups = out->scale_count();
  RETURN_IF_ERROR(out->enc.Reserve(backend_, groups * 4));
  if (out->has_group_scale) {
    RETURN_IF_ERROR(out->group_scale.Reserve(backend_, groups * 4));
    RETURN_IF_ERROR(out->scale_codes.Reserve(backend_, groups));
  }
  const double* statistics = static_cast<const double*>(workspace_.statistics.data());
  if (quant.scale == ScaleRule::kDelayed || quant.window > 1) {
    const float enc = WindowedEnc(quant, static_cast<float>(statistics[0]), call.context.history);
    StoreScale(call, 0, {enc, 1.0f, 0});
    return OkStatus();
  }
  const formats::OuterScale* outers =
      static_cast<const formats::OuterScale*>(workspace_.outers.data());
  const formats::OuterScale none = {1.0f, 1.0f, 1.0f, 1.0f};
  const bool drawn = call.rule.draws_scales();
  pool_.RunRanges(groups, kScalesPerChunk, [&](int64_t first, int64_t last, int) {
    for (int64_t g = first; g < last; ++g) {
      uint32_t word = 0;
      if (drawn) RandomScaleWord(call.context, g, &word);
      const int64_t o =
          shape_.outers_per_line == 0
              ? 0
              : shape_.Outer(g / shape_.per_line, g % shape_.per_line * shape_.extent);
      StoreScale(call, g,
                 GroupScaleOf(call.rule, statistics[g], out->has_group_scale ? outers[o] : none,
                              call.rule.element_max, word, 1.0f));
    }
  });
  if (!quant.alternatives.enabled()) return OkStatus();
  pool_.RunRanges(shape_.lines, Grain(), [&](int64_t first, int64_t last, int) {
    for (int64_t line = first; line < last; line += shape_.tile) {
      ChooseAlternatives(call, line, std::min(shape_.lines, line + shape_.tile));
    }
  });
  return OkStatus();
}

float GroupQuantizer::AlternativeError(const Call& call, int64_t first_line, int64_t last_line,
                                       int64_t first, int64_t last,
                                       const formats::GroupScale& scale) const {
  const Quant& quant = call.quant;
  const Round round = Stochastic(quant.round) ? Round::kEven : quant.round;
  const float* outers = static_cast<const float*>(call.out->outer_scale.data());
  float x[kRun], grid[kRun];
  float error = 0;
  for (int64_t line = first_line; line < last_line; ++line) {
    for (int64_t at = first; at < last; at += kRun) {
      const int64_t n = std::min(kRun, last - at);
      Load(call, line, at, n, x);
      ScaleRun(call.rule.divides(), scale.enc, x, grid, n);
      RoundRun(quant.elem, round, grid, nullptr, grid, n);
      DecodeRun(DecoderOf(quant.scale, true, scale, outers[shape_.Outer(line, at)],
                          call.out->outer_divisor),
                grid, grid, n);
      for (int64_t i = 0; i < n; ++i) {
        const float difference = formats::Magnitude(grid[i] - x[i]);
        switch (quant.alternatives.metric) {
          case ErrorMetric::kMse:
            error += difference * difference;
            break;
          case ErrorMetric::kMae:
            error += difference;
            break;
          case ErrorMetric::kMax:
            error = std::max(error, difference);
            break;
        }
      }
    }
  }
  return error;
}

void GroupQuantizer::ChooseAlternatives(const Call& call, int64_t first_line, int64_t last_line) {
  const Quant& quant = call.quant;
  const double* statistics = static_cast<const double*>(workspace_.statistics.data());
  const formats::OuterScale* outers =
      static_cast<const formats::OuterScale*>(workspace_.outers.data());
  for (int64_t g = 0; g < shape_.per_line; ++g) {
    const int64_t first = g * shape_.extent;
    const int64_t last = shape_.GroupEnd(first, shape_.depth);
    const int64_t group = shape_.Group(first_line, first);
    const formats::OuterScale& outer = outers[shape_.Outer(first_line, first)];
    formats::GroupScale best = {};
    float smallest = 0;
    for (int candidate = 0; candidate < 2; ++candidate) {
      const formats::GroupScale scale = GroupScaleOf(call.rule, statistics[group], outer,
                                                     quant.alternatives.maxima[candidate], 0, 1.0f);
      const float error = AlternativeError(call, first_line, last_line, first, last, scale);
      if (candidate == 0 || error < smallest) {
        best = scale;
        smallest = error;
      }
    }
    StoreScale(call, group, best);
  }
}

void GroupQuantizer::MaskRun(const Call& call, int64_t line, int64_t first, const float* x,
                             const float* y, const float* grid, int64_t n) {
  uint8_t* mask = call.mask + line * shape_.depth + first;
  if (call.quant.mask == Mask::kBelow6) {
    for (int64_t i = 0; i < n; ++i) mask[i] = formats::Magnitude(y[i]) < 6.0f ? 1 : 0;
    return;
  }
  // |xq - x| <= T rms, T = alpha / (2 max); values on the threshold count as inside.
  const int64_t group = shape_.Group(line, first);
  const double rms = static_cast<const double*>(workspace_.statistics.data())[group];
  const double threshold = static_cast<double>(call.quant.scale_factor) /
                           (2.0 * static_cast<double>(ElemMax(call.quant.elem))) * rms *
                           (1.0 + 0x1p-20);
  const float step = static_cast<const float*>(call.out->enc.data())[group];
  for (int64_t i = 0; i < n; ++i) {
    const double error = static_cast<double>(grid[i] * step) - static_cast<double>(x[i]);
    mask[i] = std::fabs(error) <= threshold ? 1 : 0;
  }
}

void GroupQuantizer::EncodeLine(const Call& call, int64_t line) {
  const Quant& quant = call.quant;
  const float* enc = static_cast<const float*>(call.out->enc.data());
  const bool divides = call.rule.divides();
  const bool eden = quant.scale == ScaleRule::kEden;
  const bool by_rows = call.context.contraction == Axis::kRows;
  // Contraction-major number of element (line, position).
  const int64_t stride = by_rows == shape_.turned ? 1 : shape_.lines;
  const int64_t line_start = by_rows == shape_.turned ? line * shape_.depth : line;
  double* sums = static_cast<double*>(workspace_.sums.data());
  float x[kRun], y[kRun], grid[kRun];
  uint32_t words[kRun];
  uint8_t bytes[kRun];
  ForRuns(shape_.depth, [&](int64_t first, int64_t n) {
    Load(call, line, first, n, x);
    for (int64_t at = first, end; at < first + n; at = end) {
      end = shape_.GroupEnd(at, first + n);
      ScaleRun(divides, enc[shape_.Group(line, at)], x + at - first, y + at - first, end - at);
    }
    if (Stochastic(quant.round)) {
      RandomWords(call.context, quant.round, line_start + first * stride, stride, words, n);
    }
    RoundRun(quant.elem, quant.round, y, words, grid, n);
    if (call.mask != nullptr) MaskRun(call, line, first, x, y, grid, n);
    if (call.bytes != nullptr) {
      CodesOfRun(quant.elem, grid, call.bytes + line * shape_.depth + first, n);
    } else if (call.out->has_codes && call.out->recast_enc == 0) {
      CodesOfRun(quant.elem, grid, bytes, n);
      PackCodes(quant.elem, bytes,
                static_cast<uint8_t*>(call.out->codes.data()) + line * call.out->code_row_bytes() +
                    first * ElemBits(quant.elem) / 8,
                n);
    }
    if (eden) {
      for (int64_t i = 0; i < n; ++i) {
        double* pair = sums + 2 * shape_.Group(line, first + i);
        pair[0] += static_cast<double>(y[i]) * static_cast<double>(y[i]);
        pair[1] += static_cast<double>(y[i]) * static_cast<double>(grid[i]);
      }
    } else if (call.decoded != nullptr) {
      for (int64_t at = first, end; at < first + n; at = end) {
        end = shape_.GroupEnd(at, first + n);
        DecodeRun(DecoderOf(*call.out, shape_.Group(line, at), shape_.Outer(line, at)),
                  grid + at - first, call.decoded + line * shape_.depth + at, end - at);
      }
    }
  });
}

void GroupQuantizer::DecodeLine(const QuantizedTensor& x, int64_t line, const uint8_t* bytes,
                                float* decoded) {
  const Elem elem = x.recast_enc != 0 ? Elem::kE4M3 : x.elem;
  float grid[kRun];
  ForRuns(shape_.depth, [&](int64_t first, int64_t n) {
    GridOfRun(elem, bytes + first, grid, n);
    if (x.recast_enc != 0) {
      ScaleRun(true, x.recast_enc, grid, decoded + first, n);
      return;
    }
    for (int64_t at = first, end; at < first + n; at = end) {
      end = shape_.GroupEnd(at, first + n);
      DecodeRun(DecoderOf(x, shape_.Group(line, at), shape_.Outer(line, at)), grid + at - first,
                decoded + at, end - at);
    }
  });
}

}  // namespace nibble::cpu
