// SPDX-License-Identifier: Apache-2.0
//
// OperandSplit: the part of an operand that goes to another format before the rest is rounded.
//
// Purpose: two splits. kMean takes the mean row of X (over tokens) off and keeps it in BF16, so
// that the rounded rest is centred (averis, arXiv 2603.10444). kChannels takes the columns of
// largest norm, a share of them in whole groups of 128, and rounds them to blocks of 32 with an
// E8M0 scale (TetraJet-v2, arXiv 2510.27527, which chooses the columns once, from 50 steps; here
// each X chooses its own, and the other operands follow it). The decoded operand is the sum of both
// parts, so one product forms both GEMMs.
// Thread-safety: one thread, the backend's caller. Ownership: owns its buffers on the backend.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

class OperandSplit {
 public:
  // Copies x (R, C) less the part split off to `rest`. `set_of`: the operand whose columns are
  // taken, nullptr when x chooses. INVALID_ARGUMENT for a format the part cannot have.
  Status Take(Backend& backend, const Quant& quant, const QuantizeContext& context,
              ConstTensorView x, const OperandSplit* set_of, TensorView rest);
  // decoded += the part.
  Status AddTo(Backend& backend, TensorView decoded);

  // Of the part, in the last Take.
  int64_t nonfinite_amax() const { return split_ == Split::kChannels ? codes_.nonfinite_amax : 0; }
  // Numbers the set of columns: equal sets, equal numbers. 0: none.
  uint64_t set_number() const { return set_number_; }

 private:
  Status TakeMean(Backend& backend, const Quant& quant, ConstTensorView x, TensorView rest);
  Status TakeChannels(Backend& backend, const Quant& quant, const QuantizeContext& context,
                      ConstTensorView x, const OperandSplit* set_of, TensorView rest);
  Status ChooseChannels(Backend& backend, float share, ConstTensorView x);
  Result<TensorView> Ones(Backend& backend, int64_t count);

  Split split_ = Split::kNone;
  std::vector<int64_t> channels_;  // ascending
  uint64_t set_number_ = 0;
  std::vector<float> host_;  // of x or of the choice matrix
  Buffer mean_, ones_;
  Buffer choice_;  // (columns, chosen) one-hot
  Buffer part_;    // (rows, chosen)
  int64_t rows_ = 0, cols_ = 0;
  QuantizedTensor codes_;
};

}  // namespace nibble
