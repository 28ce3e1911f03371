// SPDX-License-Identifier: Apache-2.0
//
// GroupQuantizer: scales of small groups, along either axis, under every rule.
//
// Purpose: what Backend::Quantize does beyond one FP32 scale per tensor, row or column: blocks 1xB
// and BxB, scale codes with one or two levels, corrected and stochastic scales, alternatives,
// masks, the E4M3 recast, the fallback to BF16, windows of past amaxes, held amaxes, smooth maxima.
// The tensor is worked on in lines: its rows, or, where groups run along the contraction over rows,
// its columns; the last group of a line may be shorter and has its own statistic. Random numbers
// count elements in contraction-major order, scale groups in the order of QuantizedTensor's layout,
// from kScaleElement on. Thread-safety: one thread, the backend's caller. Ownership: borrows
// everything; the workspace belongs to the backend. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/group_loops.h"
#include "kernels/cpu/group_scales.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu {

struct RowStats;

// The word of stochastic scale `group`.
void RandomScaleWord(const QuantizeContext& context, int64_t group, uint32_t* word);

struct GroupWorkspace {
  Buffer source, statistics, line_statistics, outers, sums;
  Buffer codes, turned_codes, decoded, mask;
  int64_t size_bytes() const;
};

// Whether Quantize, and Dequantize of its result, is GroupQuantizer's.
bool NeedsGroupQuantizer(const Quant& quant, const QuantizeContext& context);
bool HoldsGroups(const QuantizedTensor& x);

class GroupQuantizer {
 public:
  GroupQuantizer(Backend* backend, ThreadPool* pool, GroupWorkspace* workspace)
      : backend_(*backend), pool_(*pool), workspace_(*workspace) {}

  // As Backend::Quantize. `bounds`: clamping bounds of each row, nullptr without clamping.
  // *fell_back: the relative error is above quant.fallback_error and nothing of `out` counts.
  Status Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                  const RowStats* bounds, QuantizedTensor* out, TensorView decoded,
                  bool* fell_back);
  Status Dequantize(const QuantizedTensor& x, TensorView decoded);

 private:
  // How lines and groups lie; set by Quantize and Dequantize.
  struct Shape {
    bool turned = false;  // lines are columns
    int64_t lines = 0;
    int64_t depth = 0;     // elements of a line
    int64_t extent = 0;    // elements of a group along its line
    int64_t per_line = 1;  // groups
    Block block = Block::kTensor;
    int64_t tile = 1;             // lines of a tile
    int64_t outers_per_line = 0;  // 0: one outer scale for the tensor

    int64_t Group(int64_t line, int64_t position) const;
    int64_t Outer(int64_t line, int64_t position) const {
      return outers_per_line == 0 ? 0 : line * outers_per_line + position / 128;
    }
    int64_t GroupEnd(int64_t position, int64_t last) const;
  };
  // One Quantize call.
  struct Call {
    const Quant& quant;
    const QuantizeContext& context;
    ConstTensorView x;
    QuantizedTensor* out;
    GroupRule rule;
    const float* source = nullptr;  // lines x depth, as they are quantized; or
    bool round_on_load = false;     // x itself, rounded when read
    uint8_t* bytes = nullptr;       // staged codes, lines x depth; nullptr: packed at once
    float* decoded = nullptr;       // lines x depth; nullptr: not wanted
    uint8_t* mask = nullptr;        // lines x depth
  };

  static Shape ShapeOf(Block block, Axis contraction, Outer outer, int64_t group, int64_t rows,
                       int64_t cols);
  int64_t Grain() const;  // lines per chunk, whole tiles
  void Load(const Call& call, int64_t line, int64_t first, int64_t n, float* run) const;
  Status DescribeResult(const Call& call);
  Status PrepareSource(Call* call, const RowStats* bounds);
  Status PrepareOutputs(Call* call, bool needs_decoded, TensorView decoded);
  Status Measure(const Call& call);
  void MeasureLine(const Call& call, int64_t line, double* statistics) const;
  Status SmoothMaxima(const Call& call);
  Status SetOuters(const Call& call);
  Status SetScales(const Call& call);
  void StoreScale(const Call& call, int64_t group, const formats::GroupScale& scale);
  void ChooseAlternatives(const Call& call, int64_t first_line, int64_t last_line);
  float AlternativeError(const Call& call, int64_t first_line, int64_t last_line, int64_t first,
                         int64_t last, const formats::GroupScale& scale) const;
  void EncodeLine(const Call& call, int64_t line);
  void MaskRun(const Call& call, int64_t line, int64_t first, const float* x, const float* y,
               const float* grid, int64_t n);
  Status CorrectScales(const Call& call);
  void DecodeLine(const QuantizedTensor& x, int64_t line, const uint8_t* bytes, float* decoded);
  Result<double> RelativeError(const Call& call);
  Status Recast(const Call& call);
  Status Deliver(const Call& call, TensorView decoded);

  Backend& backend_;
  ThreadPool& pool_;
  GroupWorkspace& workspace_;
  Shape shape_;
  int64_t clamped_infinities_ = 0;
};

}  // namespace nibble::cpu
