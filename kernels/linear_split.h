// SPDX-License-Identifier: Apache-2.0
//
// OperandSplit: the part of an operand that goes to another format before the rest is rounded.
//
// Purpose: two splits. kMean takes the mean row of X (over tokens) off, so that the rounded rest is
// centred (averis, arXiv 2603.10444). kChannels takes the columns of largest norm, a share of them
// in whole groups of 128 (TetraJet-v2, arXiv 2510.27527). The part off is rounded to its own
// format, FP8 and FP4 in blocks of 32 with an E8M0 scale. The decoded operand is the sum of both
// parts, so one product forms both GEMMs. Which columns: gathered over training steps by the
// LinearInput or those of the X at hand; the other operands of X's products follow.
// Thread-safety: one thread, the backend's caller. Ownership: owns its buffers on the backend.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// The columns of largest value, a share of them rounded up to whole groups of 128, ascending. A NaN
// counts as largest; ties go to the lower column.
std::vector<int64_t> LargestChannels(const std::vector<float>& norms, float share);

// Adds the norm of each column of x (R, C) to sums, which grows to C values. Host work.
Status AddChannelNorms(Backend& backend, ConstTensorView x, std::vector<float>* sums);

// Equal sets, equal numbers; 0 for nullptr or an empty set.
uint64_t ChannelSetNumber(const std::vector<int64_t>* channels);

class OperandSplit {
 public:
  // Copies x (R, C) less the part split off to `rest`, which may be x. `channels`: the columns to
  // take, nullptr when x chooses. INVALID_ARGUMENT for columns that x does not have.
  Status Take(Backend& backend, const Quant& quant, const QuantizeContext& context,
              ConstTensorView x, const std::vector<int64_t>* channels, TensorView rest);
  // decoded += the part.
  Status AddTo(Backend& backend, TensorView decoded);
  // Nothing is split off.
  void Clear();

  // Of the part, in the last Take.
  int64_t nonfinite_amax() const { return nonfinite_amax_; }
  // Numbers the set of columns: equal sets, equal numbers. 0: none.
  uint64_t set_number() const { return set_number_; }
  const std::vector<int64_t>& channels() const { return channels_; }

 private:
  Status TakeMean(Backend& backend, const Quant& quant, const QuantizeContext& context,
                  ConstTensorView x, TensorView rest);
  Status TakeChannels(Backend& backend, const Quant& quant, const QuantizeContext& context,
                      ConstTensorView x, const std::vector<int64_t>* channels, TensorView rest);
  // The part takes the values its format can hold.
  Status RoundPart(Backend& backend, const Quant& quant, const QuantizeContext& context,
                   TensorView part);
  Result<TensorView> Ones(Backend& backend, int64_t count);

  Split split_ = Split::kNone;
  std::vector<int64_t> channels_;  // ascending
  uint64_t set_number_ = 0;
  uint64_t choice_number_ = 0;  // the set that choice_ holds
  int64_t nonfinite_amax_ = 0;
  std::vector<float> host_;  // norms, or the choice matrix
  Buffer ones_;
  Buffer choice_;  // (columns, chosen) one-hot
  Buffer part_;    // (rows, chosen), or the mean row
  int64_t rows_ = 0, cols_ = 0;
  QuantizedTensor codes_;  // only while the part is rounded
};

}  // namespace nibble
