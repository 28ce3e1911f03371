// SPDX-License-Identifier: Apache-2.0
//
// Quantize, Dequantize and DGE for one FP32 scale per tensor, row or column: passes over rows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/strings.h"
#include "kernels/cpu/code_loops.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/quantize_loops.h"
#include "kernels/cpu/random_words.h"
#include "kernels/cpu/stochastic_encode.h"
#include "kernels/cpu/vector_scan.h"
#include "kernels/executable.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scales.h"

namespace nibble::cpu {

// One quantization under way; two of them share each pass over x.
struct QuantizeJob {
  const Quant& quant;
  const QuantizeContext& context;
  QuantizedTensor* out;
  TensorView decoded;
  RowStats* stats = nullptr;    // (rows)
  uint32_t* columns = nullptr;  // (workers, cols) magnitude bits, per_column only
  // fl(1 / fold), where the loops without divisions may be used; else nullptr.
  const float* reciprocals = nullptr;
  bool fast_encode = false;  // and the scales permit EncodeSr24Fast, too

  bool turned() const { return context.contraction == Axis::kRows; }
  const float* fold() const {
    return out->folded ? static_cast<const float*>(out->fold.data()) : nullptr;
  }
  const float* enc() const { return static_cast<const float*>(out->enc.data()); }
};

namespace {

constexpr int64_t kElementsPerChunk = 8192;
// A counter of the random generator serves four elements: along the rows, four rows of a column.
constexpr int64_t kRowsPerBlock = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows per chunk, whole blocks, from the width only.
int64_t RowGrain(int64_t cols) {
  const int64_t rows = kElementsPerChunk / std::max<int64_t>(1, cols);
  return std::max(kRowsPerBlock, rows / kRowsPerBlock * kRowsPerBlock);
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

// Integer code of an outlier in half units, at most kWideMax, less the code of its clamped value.
constexpr float kWideMax = 127.0f;
int8_t WideResidual(float value, float enc, float grid) {
  const float halves = std::clamp(value * enc * 2.0f, -kWideMax, kWideMax);
  return static_cast<int8_t>(std::clamp(std::nearbyint(halves) - grid * 2.0f, -kWideMax, kWideMax));
}

// The outliers of one row of a quantized tensor.
struct ResidualRow {
  OccComp comp;
  float enc;  // of E4M3 values
  const int32_t* columns;
  void* values;

  // Writes those of a segment from *next on. `grid`: the element values, for kWide.
  void Write(const float* x, const Scaling& scaling, const float* grid, int64_t first_column,
             int64_t n, int32_t* next) const {
    int32_t* column = const_cast<int32_t*>(columns);
    uint16_t positions[kSegment + 16];
    // Rounding is monotone: nothing within the bounds leaves them.
    const int64_t count = PositionsOutside(x, n, scaling.low, scaling.high, positions);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = positions[j];
      const float value = formats::RoundBf16(x[i]);
      if (!(value < scaling.low || value > scaling.high)) continue;
      const float residual = value - formats::OccClamp(value, scaling.low, scaling.high);
      column[*next] = static_cast<int32_t>(first_column + i);
      if (comp == OccComp::kE4M3) {
        static_cast<uint8_t*>(values)[*next] = formats::EncodeE4M3(residual * enc);
      } else if (comp == OccComp::kWide) {
        const float scale =
            scaling.enc_by_column != nullptr ? scaling.enc_by_column[i] : scaling.enc;
        static_cast<int8_t*>(values)[*next] = WideResidual(value, scale, grid[i]);
      } else {
        static_cast<float*>(values)[*next] = formats::RoundBf16(residual);
      }
      ++*next;
    }
  }

  // grid += wide codes in [from, to), whose columns lie in a segment starting at first_column.
  void AddWide(int32_t from, int32_t to, int64_t first_column, float* grid) const {
    for (int32_t i = from; i < to; ++i) {
      grid[columns[i] - first_column] += static_cast<float>(static_cast<int8_t*>(values)[i]) * 0.5f;
    }
  }

  // decoded row += the residual of entries [from, to).
  void AddDecoded(int32_t from, int32_t to, float* decoded) const {
    for (int32_t i = from; i < to; ++i) {
      if (comp == OccComp::kE4M3) {
        decoded[columns[i]] += formats::DecodeE4M3(static_cast<uint8_t*>(values)[i]) / enc;
      } else {
        decoded[columns[i]] += static_cast<float*>(values)[i];
      }
    }
  }
};

ResidualRow ResidualOf(const QuantizedTensor& x) {
  return {x.comp, x.residual_enc, static_cast<const int32_t*>(x.residual_columns.data()),
          x.residual_values.data()};
}

const float* Encs(const QuantizedTensor& x) { return static_cast<const float*>(x.enc.data()); }

// Element values of a segment of row `row` from column `col` on to what they mean as x.
void DecodeGrid(const QuantizedTensor& x, int64_t row, int64_t col, const float* grid, float* out,
                int64_t n) {
  if (x.per_column()) {
    DecodeColumns(x.scale, Encs(x) + col, grid, out, n);
  } else {
    DecodeSegment(x.scale, Encs(x)[x.per_row() ? row : 0], grid, out, n);
  }
  if (!x.folded) return;
  const float* fold = static_cast<const float*>(x.fold.data());
  if (x.contraction == Axis::kCols) return UnfoldColumns(fold + col, out, n);
  UnfoldRow(fold[row], out, n);
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
        job.stats[row] = {-kInfinity, kInfinity, 0, 0, 0};
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

namespace {

// The random words of a block of rows: one segment of columns of each.
class BlockWords {
 public:
  BlockWords(const QuantizeJob& job, int64_t rows, int64_t cols)
      : stream_{job.context.seed, job.context.step, job.context.stream},
        rows_(rows),
        cols_(cols),
        turned_(job.turned()) {}

  // Before Of: the words of rows [row, row + kRowsPerBlock), columns [col, col + n).
  void Load(int64_t row, int64_t col, int64_t n) {
    if (!shared()) return;
    const int64_t groups = rows_ / kRowsPerBlock;
    RandomGroups(stream_, static_cast<uint64_t>(col * groups + row / kRowsPerBlock),
                 static_cast<uint64_t>(groups), n, words_);
    SplitLanes(words_, planes_[0], kSegment, n);
  }

  const uint32_t* Of(int64_t row, int64_t col, int64_t n) {
    if (shared()) return planes_[row % kRowsPerBlock];
    if (!turned_) return RandomRun(stream_, static_cast<uint64_t>(row * cols_ + col), n, words_);
    for (int64_t i = 0; i < n; ++i) {
      words_[i] = formats::RandomWord(stream_.seed, stream_.step, stream_.stream,
                                      static_cast<uint64_t>((col + i) * rows_ + row));
    }
    return words_;
  }

 private:
  // Whether four rows of a column have the four words of one counter.
  bool shared() const { return turned_ && rows_ % kRowsPerBlock == 0; }

  RandomStream stream_;
  int64_t rows_, cols_;
  bool turned_;
  uint32_t words_[kRowsPerBlock * kSegment + 8];
  uint32_t planes_[kRowsPerBlock][kSegment];
};

Scaling ScalingOf(const QuantizeJob& job, int64_t row, int64_t col) {
  const QuantizedTensor& out = *job.out;
  Scaling scaling;
  scaling.low = job.stats[row].low;
  scaling.high = job.stats[row].high;
  const float* fold = job.fold();
  scaling.folded = fold != nullptr;
  if (scaling.folded && job.turned()) scaling.fold = fold[row];
  if (scaling.folded && !job.turned()) scaling.fold_by_column = fold + col;
  if (out.per_column()) {
    scaling.enc_by_column = job.enc() + col;
  } else {
    scaling.enc = job.enc()[out.per_row() ? row : 0];
  }
  return scaling;
}

// One row of one job, segment by segment.
class RowEncoder {
 public:
  RowEncoder(const QuantizeJob& job, ConstTensorView x)
      : job_(job),
        x_(x),
        residual_(ResidualOf(*job.out)),
        direct_(EncodesDirectly(job.quant)),
        words_(job, x.rows, x.cols) {}

  // Rows [first, last), at most kRowsPerBlock, first a multiple of it.
  void EncodeBlock(int64_t first, int64_t last) {
    int32_t next[kRowsPerBlock] = {};
    if (job_.out->comp != OccComp::kNone) {
      const int32_t* offsets = static_cast<const int32_t*>(job_.out->residual_offsets.data());
      for (int64_t row = first; row < last; ++row) next[row - first] = offsets[row];
    }
    const bool random = direct_ && job_.quant.round == Round::kSr24;
    for (int64_t col = 0; col < x_.cols; col += kSegment) {
      const int64_t n = std::min(kSegment, x_.cols - col);
      if (random) words_.Load(first, col, n);
      for (int64_t row = first; row < last; ++row) {
        EncodeSegmentOf(row, col, n, random, &next[row - first]);
      }
    }
    if (job_.decoded.data == nullptr) return;
    for (int64_t row = first; row < last; ++row) AddResidual(row, next[row - first]);
  }

 private:
  void EncodeSegmentOf(int64_t row, int64_t col, int64_t n, bool random, int32_t* next) {
    QuantizedTensor& out = *job_.out;
    const float* source = x_.f32() + row * x_.cols + col;
    const Scaling scaling = ScalingOf(job_, row, col);
    float y[kSegment];
    float grid[kSegment];
    uint8_t scratch[2 * kSegment];
    const int64_t at = row * out.code_row_bytes() + col * ElemBits(out.elem) / 8;
    uint8_t* codes = out.has_codes ? static_cast<uint8_t*>(out.codes.data()) + at : scratch;
    const bool outliers = out.comp != OccComp::kNone && job_.stats[row].residual_count > 0;
    const bool wide = outliers && out.comp == OccComp::kWide;
    const bool decoded = job_.decoded.data != nullptr;
    if (direct_) {
      const uint32_t* words = random ? words_.Of(row, col, n) : nullptr;
      if (!(job_.fast_encode && EncodeFast(row, col, source, words, codes, n))) {
        ScaleSegment(scaling, source, y, n);
        EncodeCodes(job_.quant, y, words, codes, n);
      }
      if (decoded || wide) GridFromCodes(out.elem, codes, grid, n);
    } else {
      ScaleSegment(scaling, source, y, n);
      RoundSegment(job_.quant, PositionOf(row, col), y, grid, n);
      if (out.has_codes) EncodeSegment(out.elem, grid, codes, n);
    }
    // Before the decoded form, which may overwrite the source.
    const int32_t from = *next;
    if (outliers) residual_.Write(source, scaling, grid, col, n, next);
    if (!decoded) return;
    if (wide) residual_.AddWide(from, *next, col, grid);
    DecodeGrid(out, row, col, grid, job_.decoded.f32() + row * x_.cols + col, n);
  }

  bool EncodeFast(int64_t row, int64_t col, const float* source, const uint32_t* words,
                  uint8_t* codes, int64_t n) const {
    const float* columns = (job_.turned() ? job_.enc() : job_.reciprocals) + col;
    const float factor =
        job_.turned() ? job_.reciprocals[row] : job_.enc()[job_.out->per_row() ? row : 0];
    return EncodeSr24Fast(job_.out->elem, source, columns, factor, words, codes, n);
  }

  RandomPosition PositionOf(int64_t row, int64_t col) const {
    if (job_.turned()) return {job_.context, col * x_.rows + row, x_.rows};
    return {job_.context, row * x_.cols + col, 1};
  }

  void AddResidual(int64_t row, int32_t end) {
    if (job_.out->comp == OccComp::kNone || job_.out->comp == OccComp::kWide) return;
    const int32_t* offsets = static_cast<const int32_t*>(job_.out->residual_offsets.data());
    residual_.AddDecoded(offsets[row], end, job_.decoded.f32() + row * x_.cols);
  }

  const QuantizeJob& job_;
  ConstTensorView x_;
  ResidualRow residual_;
  bool direct_;
  BlockWords words_;
};

}  // namespace

Status CpuBackend::EncodeRows(std::span<const QuantizeJob> jobs, ConstTensorView x) {
  for (const QuantizeJob& job : jobs) {
    if (!job.out->has_codes) continue;
    RETURN_IF_ERROR(job.out->codes.Reserve(*this, job.out->rows * job.out->code_row_bytes()));
  }
  pool_.RunRanges(x.rows, RowGrain(x.cols), [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; row += kRowsPerBlock) {
      const int64_t end = std::min(last, row + kRowsPerBlock);
      for (const QuantizeJob& job : jobs) RowEncoder(job, x).EncodeBlock(row, end);
    }
  });
  return OkStatus();
}

Status CpuBackend::CheckQuantize(const Quant& quant, const QuantizeContext& context,
                                 ConstTensorView x, TensorView decoded, QuantizedTensor* out) {
  RETURN_IF_ERROR(CheckView("Quantize", "x", x, x.rows, x.cols));
  if (decoded.data != nullptr) {
    RETURN_IF_ERROR(CheckView("Quantize", "decoded", decoded, x.rows, x.cols));
  }
  if (quant.source == Source::kReuse || quant.elem == Elem::kF32) {
    return InvalidArgumentError("Quantize: a slot with elem fp32 or source reuse has no codes");
  }
  RETURN_IF_ERROR(CheckExecutable(quant));
  if (quant.split != Split::kNone) {
    return InvalidArgumentError("Quantize: a split is taken off before, by the layer");
  }
  out->rows = x.rows;
  out->cols = x.cols;
  out->elem = quant.elem;
  out->block = quant.block;
  out->contraction = context.contraction;
  out->scale = quant.scale;
  out->comp = quant.pre.enabled ? quant.pre.comp : OccComp::kNone;
  out->has_codes = context.keep_codes;
  out->has_group_scale = false;
  out->has_mask = false;
  out->recast_enc = 0;
  return OkStatus();
}

Status CpuBackend::RunJobs(std::span<QuantizeJob> jobs, ConstTensorView x) {
  RETURN_IF_ERROR(MeasureRows(jobs, x));
  for (QuantizeJob& job : jobs) {
    RETURN_IF_ERROR(SetScales(job));
    // One factor by column and one by row: a reciprocal and a scale, either way round.
    const bool crossed = job.turned() == job.out->per_column();
    job.fast_encode = job.reciprocals != nullptr && crossed && job.quant.round == Round::kSr24 &&
                      EncsAreOrdinary(job.enc(), job.out->scale_count());
  }
  return EncodeRows(jobs, x);
}

Status CpuBackend::Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                            QuantizedTensor* out, TensorView decoded) {
  RETURN_IF_ERROR(CheckQuantize(quant, context, x, decoded, out));
  if (NeedsGroupQuantizer(quant, context)) return QuantizeGroups(quant, context, x, out, decoded);
  QuantizeJob job{quant, context, out, decoded};
  return RunJobs({&job, 1}, x);
}

Status CpuBackend::QuantizeBoth(const Quant& first, const QuantizeContext& first_context,
                                const Quant& second, const QuantizeContext& second_context,
                                ConstTensorView x, QuantizedTensor* first_out,
                                QuantizedTensor* second_out) {
  if (NeedsGroupQuantizer(first, first_context) || NeedsGroupQuantizer(second, second_context)) {
    return Backend::QuantizeBoth(first, first_context, second, second_context, x, first_out,
                                 second_out);
  }
  RETURN_IF_ERROR(CheckQuantize(first, first_context, x, {}, first_out));
  RETURN_IF_ERROR(CheckQuantize(second, second_context, x, {}, second_out));
  QuantizeJob jobs[] = {{first, first_context, first_out, {}},
                        {second, second_context, second_out, {}}};
  return RunJobs(jobs, x);
}

Status CpuBackend::Dequantize(const QuantizedTensor& x, TensorView decoded) {
  RETURN_IF_ERROR(CheckView("Dequantize", "decoded", decoded, x.rows, x.cols));
  if (!x.has_codes) {
    return FailedPreconditionError("Dequantize: the codes were not kept (keep_codes was false)");
  }
  if (HoldsGroups(x)) return GroupQuantizer(this, &pool_, &groups_).Dequantize(x, decoded);
  const uint8_t* codes = static_cast<const uint8_t*>(x.codes.data());
  const int64_t row_bytes = x.code_row_bytes();
  const int64_t bits = ElemBits(x.elem);
  const ResidualRow residual = ResidualOf(x);
  const int32_t* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
  pool_.RunRanges(x.rows, RowGrain(x.cols), [&](int64_t first, int64_t last, int) {
    float grid[kSegment];
    for (int64_t row = first; row < last; ++row) {
      float* target = decoded.f32() + row * x.cols;
      const bool outliers = x.comp != OccComp::kNone;
      int32_t next = outliers ? offsets[row] : 0;
      const int32_t end = outliers ? offsets[row + 1] : 0;
      const int32_t begin = next;
      for (int64_t col = 0; col < x.cols; col += kSegment) {
        const int64_t n = std::min(kSegment, x.cols - col);
        GridFromCodes(x.elem, codes + row * row_bytes + col * bits / 8, grid, n);
        const int32_t from = next;
        while (next < end && residual.columns[next] < col + n) ++next;
        if (x.comp == OccComp::kWide) residual.AddWide(from, next, col, grid);
        DecodeGrid(x, row, col, grid, target + col, n);
      }
      if (outliers && x.comp != OccComp::kWide) residual.AddDecoded(begin, end, target);
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
  const bool e2m1 = quantized.elem == Elem::kE2M1 || quantized.recast_enc != 0;
  if (!e2m1 || !(estimator.k >= 1) || !(estimator.clip > 0)) {
    return InvalidArgumentError(
        StrFormat("DgeAccumulate: weight format %s, k = %g, clip = %g; expected e2m1, k >= 1, "
                  "clip > 0",
                  ElemName(quantized.elem).c_str(), estimator.k, estimator.clip));
  }
  const bool plain = estimator.dge() && !estimator.extrapolate &&
                     estimator.max_gradient == MaxGradient::kIgnore &&
                     (quantized.per_row() || quantized.block == Block::kTensor);
  if (!plain) return EstimateByGroups(estimator, wgrad, weight, quantized, gradient);
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
