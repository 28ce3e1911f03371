// SPDX-License-Identifier: Apache-2.0
//
// TensorFile: matrices of the laboratory, read from and written to safetensors.
//
// Values come in as BF16 or F32 and are FP32 in memory. Thread-safety: value types and free
// functions. Ownership: a matrix owns its values.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernels/tensor.h"

namespace nibble {

struct Matrix {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;  // row-major

  ConstTensorView view() const { return {values.data(), rows, cols}; }
  TensorView view() { return {values.data(), rows, cols, DType::kF32}; }
};

Matrix MakeMatrix(std::string name, int64_t rows, int64_t cols);

// "file.safetensors:name" or "file.safetensors". The name is what follows the last ':' behind
// ".safetensors"; "" when there is none.
struct TensorPlace {
  std::string path;
  std::string name;
};
TensorPlace ParseTensorPlace(std::string_view text);

// One tensor of the file; an empty name means the only one. Leading dimensions are folded into
// rows: (a, b, c) becomes (a*b, c), (n) becomes (1, n), a scalar (1, 1). NOT_FOUND lists the names
// there are; INVALID_ARGUMENT for another dtype, for no elements, or for no name where the file has
// several tensors; DATA_LOSS for a malformed file.
Result<Matrix> LoadMatrix(const std::string& path, const std::string& name);

// A tensor to write: bytes as they go into the file.
struct OutputTensor {
  std::string name;
  std::string dtype;  // of safetensors: "F32", "U8", ...
  std::vector<int64_t> shape;
  std::string bytes;
};
OutputTensor OutputOf(const Matrix& matrix);  // F32, (rows, cols)

// Writes or replaces the file as a whole; after a failure the old content stands.
Status SaveTensors(const std::string& path, const std::vector<OutputTensor>& tensors,
                   const std::map<std::string, std::string>& metadata);

}  // namespace nibble
