// SPDX-License-Identifier: Apache-2.0
//
// Speed-up of low-precision training by counting operations.
//
// Purpose: the analytic figures published with arXiv 2501.17116, and a count with the precision
// that each GEMM of a recipe really has. Thread-safe, pure arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/linear_product.h"
#include "kernels/recipe/recipe.h"
#include "worker/spec/run_config.h"

namespace nibble {

// The published count, per layer and in units of batch * seq * hidden multiply-adds: linear layers
// 24h in BF16, h the hidden size; attention 5s, s the sequence length; elementwise work 36. All
// three GEMMs of a linear layer count as FP4. The 4x smaller FP4 term is 6h, FP8's 12h.
struct PublishedSpeedup {
  double fp4;  // (24h + 5s + 36) / (6h + 5s + 36)
  double fp8;  // the same with 12h
  // Clamping and DGE added, denominator 6h + 24(1-a)h + 5s + 68 as printed: 2(1-a) of 24h at twice
  // the BF16 rate for the residual, 32 more for DGE.
  double fp4_with_overhead;
  // With 48(1-a)h, a residual at the BF16 rate. It gives the published 2.95, which contradicts the
  // printed formula (3.03): an erratum.
  double fp4_residual_in_bf16;
};
PublishedSpeedup CountAsPublished(double hidden, double seq, double alpha);

// Rate of a GEMM relative to BF16, by the precision class of its operands. With a backend, instead:
// fp4 for a product that runs on codes there, bf16 for any other. Borrows the backend.
struct DeviceRates {
  std::string name;
  std::string basis;  // where the rates come from
  double fp32 = 1;
  double bf16 = 1;
  double fp8 = 1;
  double fp4 = 1;
  const Backend* backend = nullptr;

  double Of(PrecisionClass precision) const;
  double OfProduct(const LinearRecipe& recipe, const LinearProduct& product,
                   const GemmPrecision& precision) const;
};
// "h100", "b200".
const std::vector<DeviceRates>& KnownDevices();

// One kind of work of a training step.
struct WorkItem {
  std::string name;  // "fprop", "dgrad", "wgrad", "residual", "attention", "head", "elementwise"
  double flops_per_token = 0;  // forward and backward
  double seconds_share = 0;    // of the recipe's step
  double mean_rate = 1;        // relative to BF16
};
struct CountedSpeedup {
  std::vector<WorkItem> items;
  double speedup = 1;  // over the same step with every GEMM in BF16
};

// Every GEMM at the rate of the precision that PrecisionOf gives it, block by block; attention,
// head and elementwise work at the BF16 rate. A compensated residual costs its non-zeros, 2(1-a) of
// fprop, where fprop runs on FP4 codes; elsewhere it is part of the decoded operand. Quantizing is
// not counted: it is bound by memory, and only a measurement tells. Precondition: a model whose
// vocab_size is known.
CountedSpeedup CountForRecipe(const ModelConfig& model, int64_t seq, const Recipe& recipe,
                              const DeviceRates& device);

}  // namespace nibble
