// SPDX-License-Identifier: Apache-2.0
//
// The second pass of Quantize over the rows, codes and outliers, and the way back from them.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/cpu/code_loops.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_quantizer.h"
#include "kernels/cpu/quantize_job.h"
#include "kernels/cpu/random_words.h"
#include "kernels/cpu/stochastic_encode.h"
#include "kernels/cpu/vector_scan.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"

namespace nibble::cpu {
namespace {

// Code of an outlier in half units, at most kWideLimit, less the code of its clamped value.
int8_t WideResidual(OccComp comp, float value, float enc, float grid) {
  constexpr float kLimit = QuantizedTensor::kWideLimit;
  const float code = formats::WideCode(value * enc * 2.0f, comp == OccComp::kWideE4M3);
  return static_cast<int8_t>(std::clamp(code - grid * 2.0f, -kLimit, kLimit));
}

// The outliers of one row of a quantized tensor.
struct ResidualRow {
  OccComp comp;
  float enc;  // of E4M3 values
  const int32_t* columns;
  void* values;

  // Writes those of a segment from *next on. `grid`: the element values, for wide codes, whose
  // largest full code raises *wide_max.
  void Write(const float* x, const Scaling& scaling, const float* grid, int64_t first_column,
             int64_t n, int32_t* next, int32_t* wide_max) const {
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
      } else if (IsWide(comp)) {
        const float scale =
            scaling.enc_by_column != nullptr ? scaling.enc_by_column[i] : scaling.enc;
        const int8_t wide = WideResidual(comp, value, scale, grid[i]);
        static_cast<int8_t*>(values)[*next] = wide;
        *wide_max = std::max(*wide_max, std::abs(wide + static_cast<int32_t>(grid[i] * 2.0f)));
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
      for (int64_t row = first; row < last; ++row) {
        next[row - first] = offsets[row];
        job_.stats[row].wide_max = 0;
      }
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
    const bool wide = outliers && IsWide(out.comp);
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
    if (outliers) {
      residual_.Write(source, scaling, grid, col, n, next, &job_.stats[row].wide_max);
    }
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
    if (job_.out->comp == OccComp::kNone || IsWide(job_.out->comp)) return;
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
  for (const QuantizeJob& job : jobs) {
    if (!IsWide(job.out->comp)) continue;
    job.out->wide_max = 0;
    for (int64_t row = 0; row < x.rows; ++row) {
      job.out->wide_max = std::max(job.out->wide_max, job.stats[row].wide_max);
    }
  }
  return OkStatus();
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
        if (IsWide(x.comp)) residual.AddWide(from, next, col, grid);
        DecodeGrid(x, row, col, grid, target + col, n);
      }
      if (outliers && !IsWide(x.comp)) residual.AddDecoded(begin, end, target);
    }
  });
  return OkStatus();
}

}  // namespace nibble::cpu
