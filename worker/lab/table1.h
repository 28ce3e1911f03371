// SPDX-License-Identifier: Apache-2.0
//
// Table 1 of arXiv 2501.17116 on activations of a model trained here: how exactly E2M1 stands for
// the inputs of linear layers, by treatment of outliers and by kind of layer.
// Thread-safety: one thread, the backend's caller.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/recipe/recipe.h"
#include "worker/spec/journal.h"
#include "worker/train/model.h"

namespace nibble {

// One row of the published table; its activations are those of a 1.3B model.
struct OutlierTreatment {
  const char* name;
  bool clamp;
  double alpha;
  bool compensate;
  double published_cosine, published_mse, published_snr_db;
};
const std::vector<OutlierTreatment>& OutlierTreatments();

struct Table1Row {
  std::string treatment;
  std::string layers;  // "query, key, value", "attention output", "gate, up", "down" or "all"
  HealthRecord health;
};

// The inputs of all linear layers of `model`, as its last pass left them, through every treatment.
// `block`: kToken or kTensor. FAILED_PRECONDITION when the model's recipe does not keep its linear
// inputs (bf16 and fp32 do).
Result<std::vector<Table1Row>> MeasureTable1(Backend* backend, const Model& model, Block block);

}  // namespace nibble
