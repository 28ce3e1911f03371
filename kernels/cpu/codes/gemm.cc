// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/codes/gemm.h"

#include <algorithm>

#include "kernels/cpu/codes/outliers.h"

namespace nibble::cpu::codes {
namespace {

// A task's block of results. The left rows of a depth block stay in the second cache.
constexpr int64_t kBlockRows = 128;
constexpr int64_t kBlockCols = 256;
constexpr int64_t kSmallestBlock = 64;
constexpr int64_t kWantedTasks = 8;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  int64_t left_panels, right_panels;  // per task
  int64_t tasks_left, tasks_right;
  int64_t depth_block;
};

Plan PlanOf(const Variant& variant, const CodeGemm& gemm, const PackedCodes& left,
            const PackedCodes& right) {
  int64_t rows = kBlockRows, cols = kBlockCols;
  while (CeilDiv(gemm.rows, rows) * CeilDiv(gemm.cols, cols) < kWantedTasks &&
         std::max(rows, cols) > kSmallestBlock) {
    (cols >= rows ? cols : rows) /= 2;
  }
  Plan plan{};
  plan.left_panels = std::max<int64_t>(1, rows / left.lanes);
  plan.right_panels = std::max<int64_t>(1, cols / right.lanes);
  plan.tasks_left = CeilDiv(CeilDiv(gemm.rows, left.lanes), plan.left_panels);
  plan.tasks_right = CeilDiv(CeilDiv(gemm.cols, right.lanes), plan.right_panels);
  int64_t block = variant.depth_block;
  if (variant.group_tile != nullptr) {
    block = std::max<int64_t>(1, block / gemm.group) * gemm.group;
  }
  // A short remainder joins the block before it.
  plan.depth_block = left.depth <= block * 4 / 3 ? left.depth : block;
  return plan;
}

// Results of a part of a tile of a transposed product: its rows are columns of the result.
void FinishTransposed(const int32_t* tile, const FinishArgs& args) {
  float results[kMaxLeftLanes][kMaxRightLanes];
  for (int64_t i = 0; i < args.rows; ++i) {
    const int32_t* in = tile + i * args.stride;
    for (int64_t j = 0; j < args.cols; ++j) {
      results[i][j] = static_cast<float>(in[j]) * args.right_scale[j] * args.left_scale[i];
    }
  }
  for (int64_t j = 0; j < args.cols; ++j) {
    float* out = args.out + j * args.out_stride;
    for (int64_t i = 0; i < args.rows; ++i) {
      out[i] = args.accumulate ? out[i] + results[i][j] : results[i][j];
    }
  }
}

class Multiplication {
 public:
  Multiplication(const KernelSet& kernels, const Variant& variant, const CodeGemm& gemm,
                 const PackedCodes& left, const PackedCodes& right, const Plan& plan,
                 const float* residual, const int32_t* cells, const PlacedOutliers& outliers)
      : kernels_(kernels),
        variant_(variant),
        gemm_(gemm),
        left_(left),
        right_(right),
        plan_(plan),
        residual_(residual),
        cells_(cells),
        outliers_(outliers) {}

  // `tiles`: the task's sums, one tile after the other. `correction`: its (rows, columns) of c.
  void RunTask(int64_t task, int32_t* tiles, float* correction) const {
    const int64_t first_left = task / plan_.tasks_right * plan_.left_panels;
    const int64_t first_right = task % plan_.tasks_right * plan_.right_panels;
    const int64_t last_left =
        std::min(first_left + plan_.left_panels, CeilDiv(gemm_.rows, left_.lanes));
    const int64_t last_right =
        std::min(first_right + plan_.right_panels, CeilDiv(gemm_.cols, right_.lanes));
    const int64_t tile_size = int64_t{left_.lanes} * right_.lanes;
    const bool keep = plan_.depth_block < left_.depth;
    const int64_t width = (last_right - first_right) * right_.lanes;
    if (gemm_.sparse) Correct(first_left, last_left, first_right, last_right, correction);
    if (gemm_.split) {
      SumOutliers(first_left, last_left, first_right, last_right,
                  reinterpret_cast<int32_t*>(correction));
    }
    for (int64_t k = 0; k < left_.depth; k += plan_.depth_block) {
      const int64_t depth = std::min(plan_.depth_block, left_.depth - k);
      int32_t* tile = tiles;
      for (int64_t j = first_right; j < last_right; ++j) {
        for (int64_t i = first_left; i < last_left; ++i) {
          RunTile(i, j, k, depth, tile);
          if (k + depth == left_.depth) {
            const int64_t at = (i - first_left) * left_.lanes * width;
            FinishTile(i, j, tile, correction + at + (j - first_right) * right_.lanes, width);
          }
          if (keep) tile += tile_size;
        }
      }
    }
  }

 private:
  void RunTile(int64_t i, int64_t j, int64_t k, int64_t depth, int32_t* tile) const {
    const uint8_t* left = left_.panel(i) + k * left_.lanes * variant_.left.code_bytes();
    const uint8_t* right = right_.panel(j) + k * right_.lanes * variant_.right.code_bytes();
    if (variant_.group_tile != nullptr) {
      const int64_t g = k / gemm_.group;
      variant_.group_tile({left, right, right_.bias(j) + g * right_.lanes, depth / gemm_.group,
                           gemm_.group,
                           gemm_.left_group + g * gemm_.left_group_stride + i * left_.lanes,
                           gemm_.right_group + g * gemm_.right_group_stride + j * right_.lanes,
                           gemm_.left_group_stride, gemm_.right_group_stride, k > 0,
                           reinterpret_cast<float*>(tile), left_.bias(i) + g * left_.lanes});
      return;
    }
    const int64_t span = variant_.span == 0 ? 0 : k / variant_.span;
    variant_.tile({left, right, left_.bias(i) + span * left_.lanes,
                   right_.bias(j) + span * right_.lanes, depth, k > 0, tile});
  }

  // How the sums of left panel i against right panel j become results.
  FinishArgs Finishing(int64_t i, int64_t j, const float* correction,
                       int64_t correction_stride) const {
    const int64_t row = i * left_.lanes;
    const int64_t col = j * right_.lanes;
    FinishArgs args{};
    args.rows = std::min<int64_t>(left_.lanes, gemm_.rows - row);
    args.cols = std::min<int64_t>(right_.lanes, gemm_.cols - col);
    args.stride = right_.lanes;
    args.left_scale = gemm_.left_scale + row;
    args.right_scale = gemm_.right_scale + col;
    args.accumulate = gemm_.accumulate;
    args.out_stride = gemm_.transposed ? gemm_.rows : gemm_.cols;
    args.out =
        gemm_.out + (gemm_.transposed ? col * args.out_stride + row : row * args.out_stride + col);
    args.correction_stride = correction_stride;
    if (gemm_.sparse) args.correction = correction;
    if (gemm_.split) args.outlier_sums = reinterpret_cast<const int32_t*>(correction);
    return args;
  }

  void FinishTile(int64_t i, int64_t j, int32_t* tile, const float* correction,
                  int64_t correction_stride) const {
    const FinishArgs args = Finishing(i, j, correction, correction_stride);
    if (variant_.group_tile != nullptr) {
      return kernels_.finish_groups(reinterpret_cast<const float*>(tile), args);
    }
    const bool whole = args.rows == left_.lanes && args.cols == right_.lanes;
    if (gemm_.transposed && whole) return kernels_.finish_transposed(tile, args);
    if (args.outlier_sums != nullptr) {
      for (int64_t row = 0; row < args.rows; ++row) {
        const int32_t* sums = args.outlier_sums + row * args.correction_stride;
        for (int64_t col = 0; col < args.cols; ++col) tile[row * args.stride + col] += sums[col];
      }
    }
    if (gemm_.transposed) return FinishTransposed(tile, args);
    kernels_.finish(tile, args);
  }

  // The same range as Correct's, of a split operand.
  void SumOutliers(int64_t first_left, int64_t last_left, int64_t first_right, int64_t last_right,
                   int32_t* sums) const {
    const int64_t row = first_left * left_.lanes;
    kernels_.outlier_sums({right_.panel(first_right), right_.panel_bytes, last_right - first_right,
                           variant_.right, std::min(last_left * left_.lanes, gemm_.rows) - row,
                           outliers_.offsets + row, outliers_.outliers, sums});
  }

  // c of left panels [first_left, last_left) against right panels [first_right, last_right).
  void Correct(int64_t first_left, int64_t last_left, int64_t first_right, int64_t last_right,
               float* c) const {
    const QuantizedTensor& x = *gemm_.left.tensor;
    const int64_t row = first_left * left_.lanes;
    CorrectionArgs args{};
    args.panel = right_.panel(first_right);
    args.panel_bytes = right_.panel_bytes;
    args.panels = last_right - first_right;
    args.layout = variant_.right;
    args.rows = std::min(last_left * left_.lanes, gemm_.rows) - row;
    args.offsets = static_cast<const int32_t*>(x.residual_offsets.data()) + row;
    args.columns = static_cast<const int32_t*>(x.residual_columns.data());
    args.values = residual_;
    args.cells = cells_;
    if (gemm_.group > 0) args.factor = gemm_.right_group + first_right * right_.lanes;
    args.factor_stride = gemm_.right_group_stride;
    args.group = gemm_.group;
    args.c = c;
    kernels_.correct(args);
  }

  const KernelSet& kernels_;
  const Variant& variant_;
  const CodeGemm& gemm_;
  const PackedCodes& left_;
  const PackedCodes& right_;
  const Plan& plan_;
  const float* residual_;  // decoded outliers
  const int32_t* cells_;   // where they meet the right panels
  PlacedOutliers outliers_;
};

}  // namespace

int64_t FastWorkspace::size_bytes() const {
  return left.memory.capacity_bytes() + right.memory.capacity_bytes() + scratch.capacity_bytes() +
         residual.capacity_bytes();
}

const Variant* ChooseVariant(const KernelSet& kernels, const CodeGemm& gemm) {
  const bool grouped = gemm.group > 0;
  const Variant* variants = grouped ? kernels.grouped : kernels.outer;
  const int count = grouped ? kernels.grouped_count : kernels.outer_count;
  for (const Variant* v = variants; v < variants + count; ++v) {
    if (grouped && (gemm.group % v->depth_multiple != 0 || (v->span > 0 && gemm.group > v->span))) {
      continue;
    }
    if (gemm.left.max_code <= v->left_max && gemm.right.max_code <= v->right_max) return v;
  }
  return nullptr;
}

Status MultiplyCodes(Backend& backend, ThreadPool& pool, const KernelSet& kernels,
                     const Variant& variant, const CodeGemm& gemm, const PackedCodes& left,
                     const PackedCodes& right, FastWorkspace* workspace) {
  const Plan plan = PlanOf(variant, gemm, left, right);
  const int64_t tile_bytes = int64_t{left.lanes} * right.lanes * 4;
  const int64_t sums = tile_bytes * plan.left_panels * plan.right_panels;
  const int64_t per_thread = gemm.sparse || gemm.split ? 2 * sums : sums;
  RETURN_IF_ERROR(workspace->scratch.Reserve(backend, per_thread * pool.threads()));
  float* residual = nullptr;
  int32_t* cells = nullptr;
  if (gemm.sparse) {
    const QuantizedTensor& x = *gemm.left.tensor;
    RETURN_IF_ERROR(workspace->residual.Reserve(backend, x.residual_count * 8));
    residual = static_cast<float*>(workspace->residual.data());
    cells = reinterpret_cast<int32_t*>(residual + x.residual_count);
    const int32_t* columns = static_cast<const int32_t*>(x.residual_columns.data());
    pool.RunRanges(x.residual_count, 4096, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first; i < last; ++i) {
        residual[i] = ResidualValue(x, i);
        cells[i] = static_cast<int32_t>(variant.right.At(columns[i], 0));
      }
    });
  }
  PlacedOutliers outliers;
  if (gemm.split) {
    ASSIGN_OR_RETURN(outliers,
                     PlaceOutliers(backend, pool, gemm, variant.right, &workspace->residual));
  }
  const Multiplication work(kernels, variant, gemm, left, right, plan, residual, cells, outliers);
  uint8_t* scratch = static_cast<uint8_t*>(workspace->scratch.data());
  pool.Run(plan.tasks_left * plan.tasks_right, [&](int64_t task, int worker) {
    uint8_t* mine = scratch + worker * per_thread;
    work.RunTask(task, reinterpret_cast<int32_t*>(mine), reinterpret_cast<float*>(mine + sums));
  });
  return OkStatus();
}

Status FastCodeGemm(Backend& backend, ThreadPool& pool, const KernelSet& kernels,
                    const Variant& variant, const CodeGemm& gemm, FastWorkspace* workspace) {
  RETURN_IF_ERROR(
      PackCodes(backend, pool, kernels, variant, gemm, PackSide::kLeft, &workspace->left));
  RETURN_IF_ERROR(
      PackCodes(backend, pool, kernels, variant, gemm, PackSide::kRight, &workspace->right));
  return MultiplyCodes(backend, pool, kernels, variant, gemm, workspace->left, workspace->right,
                       workspace);
}

}  // namespace nibble::cpu::codes
