// SPDX-License-Identifier: Apache-2.0
//
// OscillationReset: the periodic weight rule oscireset (TetraJet-v2, arXiv 2510.27527).
//
// Purpose: a weight that hovers at a rounding threshold makes its quantized value jump although it
// hardly moves itself. From a share of the steps on, every `period` updates, the paths
// sum |dW| and sum |dWq| of `window` updates are measured for each element of every linear layer
// whose weight is rounded; at the end of the window elements with sum |dWq| >= ratio * sum |dW|,
// and a path above 0, take their quantized value. Windows begin after update
// ceil(from_share * steps) + j * period. A window during which the recipe's stage changes is given
// up.
// Thread-safety: one thread, the backend's caller. Ownership: owns four values per weight on the
// backend and a scratch weight, all allocated by Create; borrows the rest.
// Invariants: the outcome is a pure function of the weights' history, so a resumed run repeats an
// uninterrupted one bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/train/model.h"
#include "worker/train/parameters.h"

namespace nibble {

class OscillationReset {
 public:
  // Follows the weight rule of the model's recipe over `steps` planned updates. RESOURCE_EXHAUSTED
  // when the backend has no memory left.
  static Result<std::unique_ptr<OscillationReset>> Create(Backend* backend, Parameters* parameters,
                                                          Model* model, int64_t steps);

  // Before the first update of this process; `completed` were done earlier and left `tensors`.
  // `next` is where the coming forward pass stands. DATA_LOSS for a path of another size.
  Status Start(int64_t completed, const LinearStep& next, const RecipeTensors& tensors);
  // After update number `completed`. `new_stage`: the stage has changed since the last call.
  // Returns how many elements took their quantized value, -1 when no window ended here.
  Result<int64_t> AfterUpdate(int64_t completed, const LinearStep& next, bool new_stage);
  // Adds the paths of an open window.
  Status Save(int64_t completed, RecipeTensors* tensors) const;

 private:
  struct Tracked {
    int64_t layer = 0;
    LinearKind kind = LinearKind::kQuery;
    size_t parameter = 0;
    // (N, K): the values after the last update and the paths since the window began.
    TensorView weight_before, quantized_before, path, quantized_path;
  };

  OscillationReset(Backend* backend, Parameters* parameters, Model* model, int64_t steps);
  bool Quantizes(const Tracked& tracked) const;
  TensorView Scratch(const Tracked& tracked) const;
  Status SetBefore(const LinearStep& next);
  Status Begin(const LinearStep& next);
  Status Track(const LinearStep& next);
  Result<int64_t> Reset();

  Backend& backend_;
  Parameters& parameters_;
  Model& model_;
  WeightRule rule_;
  int64_t first_ = 0;      // the first window begins after this update
  bool tracking_ = false;  // a window is open
  std::vector<Tracked> tracked_;
  Buffer state_, scratch_;
};

}  // namespace nibble
