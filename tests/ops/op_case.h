// SPDX-License-Identifier: Apache-2.0
//
// OpCase: one declaration of an operation, from which every check of it is made: against a plain
// double-precision reference, gradients by finite differences of that reference, equal bits for
// every thread count, and non-finite inputs.
// Thread-safety: constant data. Ownership: owns its functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace nibble::ops {

struct Operand {
  int64_t rows;
  int64_t cols;
  int32_t id_limit = 0;  // above 0: i32 ids in [0, id_limit)
  double offset = 0;     // added to values in (-1, 1)
  bool differentiable = true;

  int64_t size() const { return rows * cols; }
};

using Views = std::vector<TensorView>;
using Doubles = std::vector<std::vector<double>>;

struct OpCase {
  std::string name;
  std::vector<Operand> inputs;
  std::vector<Operand> outputs;  // the first one is compared and carries the gradient
  std::function<Status(Backend&, const Views& in, const Views& out)> forward;
  // din views are zeroed before; nullptr when the operation has no backward of its own.
  std::function<Status(Backend&, const Views& in, const Views& out, TensorView dout,
                       const Views& din)>
      backward;
  std::function<std::vector<double>(const Doubles& in)> reference;
  bool unit_dout = false;  // the gradient is defined for dout = 1 only
  double tolerance = 2e-6;
};

// Every operation with a reference, in several shapes (1, primes, above one block).
std::vector<OpCase> AllOpCases();

}  // namespace nibble::ops
