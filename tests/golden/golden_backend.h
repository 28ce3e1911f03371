// SPDX-License-Identifier: Apache-2.0
//
// GoldenBackend: the CPU backend, the goldens' input generator and a listed random source.
// Thread-safety: for one test at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/formats/bf16.h"
#include "tests/golden/golden.h"

namespace nibble::golden {

// Words and signs from functions of (stream, index).
class ListedSource final : public RandomReplay {
 public:
  std::function<uint32_t(uint32_t, uint64_t)> word;
  std::vector<double> signs;

  uint32_t Word(uint32_t stream, uint64_t index) const override { return word(stream, index); }
  bool Negative(uint32_t, int64_t index) const override {
    return signs[static_cast<size_t>(index) % signs.size()] < 0;
  }
};

// The word whose upper 24 bits are u * 2^24: "up iff u < fraction".
inline uint32_t WordOf(double u) { return static_cast<uint32_t>(u * 4294967296.0); }

// All numbers of nested arrays, in order.
inline void Flatten(const Json& value, std::vector<float>* out) {
  if (!value.is_array()) {
    out->push_back(static_cast<float>(value.AsDouble()));
    return;
  }
  for (const Json& item : value.items()) Flatten(item, out);
}
inline std::vector<float> Flat(const Json& value) {
  std::vector<float> out;
  Flatten(value, &out);
  EXPECT_FALSE(out.empty()) << value.Dump();
  return out;
}

// n values of the goldens' generator: bf16((((i*a+b) mod m)-h)/div), times 8 where outlier_every >
// 0 and i mod outlier_every = outlier_at.
inline std::vector<float> Inp(int n, int a, int b, int m, int h, float div, int outlier_at,
                              int outlier_every) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) {
    float value = static_cast<float>((i * a + b) % m - h) / div;
    if (outlier_every > 0 && i % outlier_every == outlier_at) value *= 8;
    x[static_cast<size_t>(i)] = formats::RoundBf16(value);
  }
  return x;
}

class GoldenBackend : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Backend>> made = MakeBackend("cpu", {});
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    backend_ = std::move(*made);
  }

  // Quantizes x of `rows` rows and returns the decoded values, equal to Dequantize's.
  std::vector<float> Decode(const Quant& quant, const QuantizeContext& context,
                            const std::vector<float>& x, int64_t rows, QuantizedTensor* out) {
    const int64_t cols = static_cast<int64_t>(x.size()) / rows;
    std::vector<float> decoded(x.size()), again(x.size());
    Status status = backend_->Quantize(quant, context, {x.data(), rows, cols}, out,
                                       {decoded.data(), rows, cols});
    EXPECT_TRUE(status.ok()) << status.ToString();
    status = backend_->Dequantize(*out, {again.data(), rows, cols});
    EXPECT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(decoded, again);
    return decoded;
  }
  std::vector<float> Decode(const Quant& quant, const std::vector<float>& x, int64_t rows,
                            QuantizedTensor* out) {
    return Decode(quant, {}, x, rows, out);
  }

  // One number per element of a tensor of 4-bit codes.
  static std::vector<float> Nibbles(const QuantizedTensor& q) {
    const uint8_t* bytes = static_cast<const uint8_t*>(q.codes.data());
    std::vector<float> codes;
    for (int64_t row = 0; row < q.rows; ++row) {
      for (int64_t col = 0; col < q.cols; ++col) {
        const uint8_t byte = bytes[row * q.code_row_bytes() + col / 2];
        codes.push_back(static_cast<float>(col % 2 == 0 ? byte & 15 : byte >> 4));
      }
    }
    return codes;
  }
  static std::vector<float> ScaleCodes(const QuantizedTensor& q) {
    const uint8_t* bytes = static_cast<const uint8_t*>(q.scale_codes.data());
    return {bytes, bytes + q.scale_count()};
  }
  static std::vector<float> GroupScales(const QuantizedTensor& q) {
    const float* scales = static_cast<const float*>(q.group_scale.data());
    return {scales, scales + q.scale_count()};
  }
  static std::vector<float> Masks(const QuantizedTensor& q) {
    const uint8_t* bytes = static_cast<const uint8_t*>(q.mask.data());
    return {bytes, bytes + q.rows * q.cols};
  }
  // Sources differ in the sign they give a zero: codes compare with -0 taken for 0.
  static std::vector<float> WithoutNegativeZero(std::vector<float> codes) {
    for (float& code : codes) code = code == 8.0f ? 0.0f : code;
    return codes;
  }

  std::unique_ptr<Backend> backend_;
};

}  // namespace nibble::golden
