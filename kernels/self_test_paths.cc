// SPDX-License-Identifier: Apache-2.0
#include "kernels/self_test_paths.h"

#include <cmath>
#include <utility>

#include "base/strings.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "kernels/linear.h"
#include "kernels/recipe/proofs.h"

namespace nibble {
namespace {

struct Shape {
  int64_t tokens, in, out;
};
// Odd, so that no kernel meets only round numbers, and multiples of every block and of 16.
constexpr Shape kShapes[] = {{67, 96, 41}, {128, 128, 256}, {256, 384, 128}};
// Codes are equal and sums exact or in FP32, in another order at most: what remains is far below.
constexpr double kTolerance = 1e-4;
// FP8 tensor cores sum with fewer bits: Hopper's keep 13 below the largest term of a sum until they
// promote it, at most every 128 terms. That alone gives up to 4e-4 at these shapes.
constexpr double kFp8Tolerance = 2e-3;

struct LayerResults {
  std::vector<float> y, dx, dw;
};

Result<LayerResults> RunLayer(Backend& backend, Support path, const LinearRecipe& recipe,
                              const Shape& s) {
  const auto matrix = [&](uint32_t stream, int64_t rows, int64_t cols, float scale) {
    return DeviceMatrix::Create(backend, rows, cols, SelfTestValues(stream, rows * cols, scale));
  };
  const auto zeros = [&](int64_t rows, int64_t cols) {
    return DeviceMatrix::Create(backend, rows, cols,
                                std::vector<float>(static_cast<size_t>(rows * cols), 0.0f));
  };
  ASSIGN_OR_RETURN(const DeviceMatrix x, matrix(1, s.tokens, s.in, 1.0f));
  ASSIGN_OR_RETURN(const DeviceMatrix w, matrix(2, s.out, s.in, 0.1f));
  ASSIGN_OR_RETURN(const DeviceMatrix dy, matrix(3, s.tokens, s.out, 1e-3f));
  ASSIGN_OR_RETURN(const DeviceMatrix y, zeros(s.tokens, s.out));
  ASSIGN_OR_RETURN(const DeviceMatrix dx, zeros(s.tokens, s.in));
  ASSIGN_OR_RETURN(const DeviceMatrix dw, zeros(s.out, s.in));
  LinearWorkspace workspace(&backend, path);
  LinearInput input(&workspace, recipe, 0);
  QuantizedLinear linear(&workspace, recipe, 0);
  LinearStep step;
  step.seed = 11;
  RETURN_IF_ERROR(input.Set(step, x.view()));
  RETURN_IF_ERROR(linear.Forward(step, input, w.view(), 1, y.view()));
  RETURN_IF_ERROR(
      linear.Backward(step, dy.view(), input, w.view(), 1, dx.view(), false, dw.view()));
  LayerResults results;
  ASSIGN_OR_RETURN(results.y, y.Read(backend));
  ASSIGN_OR_RETURN(results.dx, dx.Read(backend));
  ASSIGN_OR_RETURN(results.dw, dw.Read(backend));
  return results;
}

// Norm of the difference over the norm of what is expected.
double RelativeError(const std::vector<float>& got, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - static_cast<double>(expected[i]);
    error += difference * difference;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(error / std::max(norm, 1e-300));
}

Status ExpectNear(const std::string& what, const std::vector<float>& got,
                  const std::vector<float>& expected, double tolerance = kTolerance) {
  const double error = RelativeError(got, expected);
  if (error <= tolerance) return OkStatus();
  return InternalError("self-test of " + what +
                       StrFormat(" failed: relative error %.3g against the reference, at most %.3g "
                                 "expected",
                                 error, tolerance));
}

double ToleranceOf(const LinearRecipe& recipe, const LinearProduct& product) {
  const auto fp8 = [&](Slot slot) {
    const Quant& quant = recipe.Resolved(slot);
    return quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2 ||
           (quant.pre.enabled && quant.pre.comp == OccComp::kE4M3);
  };
  return fp8(product.left) || fp8(product.right) ? kFp8Tolerance : kTolerance;
}

// Moments, scales and weights of one backend.
struct State {
  DeviceMatrix m, v, weight, gradient;
  StateScales scales;
};

Result<std::vector<float>> WeightsAfterTwoUpdates(Backend& backend, const StatePrecision& precision,
                                                  DType m_type, DType v_type) {
  constexpr int64_t kSize = 1000;
  const std::vector<float> zeros(kSize, 0.0f);  // in every format
  State s;
  ASSIGN_OR_RETURN(s.m, DeviceMatrix::Create(backend, 1, kSize, zeros));
  ASSIGN_OR_RETURN(s.v, DeviceMatrix::Create(backend, 1, kSize, zeros));
  ASSIGN_OR_RETURN(s.weight,
                   DeviceMatrix::Create(backend, 1, kSize, SelfTestValues(4, kSize, 0.1f)));
  ASSIGN_OR_RETURN(s.gradient,
                   DeviceMatrix::Create(backend, 1, kSize, SelfTestValues(5, kSize, 1e-2f)));
  const TensorView m{s.m.view().data, 1, kSize, m_type}, v{s.v.view().data, 1, kSize, v_type};
  AdamWParams params;
  params.learning_rate = 1e-2f;
  params.seed = 9;
  for (params.step = 1; params.step <= 2; ++params.step) {
    RETURN_IF_ERROR(backend.RoundedAdamW(params, precision, s.gradient.view(), m, v,
                                         s.weight.view(), &s.scales));
  }
  return s.weight.Read(backend);
}

Result<std::vector<float>> OnTheWire(Backend& backend) {
  constexpr int64_t kSize = 4096;
  ASSIGN_OR_RETURN(const DeviceMatrix x,
                   DeviceMatrix::Create(backend, 1, kSize, SelfTestValues(6, kSize, 3.0f)));
  ASSIGN_OR_RETURN(const float amax, backend.AbsMax(x.view()));
  RETURN_IF_ERROR(backend.RoundToE4M3(448.0f / amax, x.view()));
  return x.Read(backend);
}

Result<std::vector<float>> AfterTheWeightRule(Backend& backend) {
  constexpr int64_t kSize = 1000;
  const auto matrix = [&](uint32_t stream) {
    return DeviceMatrix::Create(backend, 1, kSize, SelfTestValues(stream, kSize, 1.0f));
  };
  ASSIGN_OR_RETURN(const DeviceMatrix x, matrix(7));
  ASSIGN_OR_RETURN(const DeviceMatrix previous, matrix(8));
  ASSIGN_OR_RETURN(const DeviceMatrix path, matrix(9));
  ASSIGN_OR_RETURN(const DeviceMatrix quantized_path, matrix(10));
  ASSIGN_OR_RETURN(const DeviceMatrix quantized, matrix(11));
  RETURN_IF_ERROR(backend.AddPath(x.view(), previous.view(), path.view()));
  RETURN_IF_ERROR(
      backend.ResetOscillating(0.5f, path.view(), quantized_path.view(), quantized.view(), x.view())
          .status());
  return x.Read(backend);
}

}  // namespace

Result<DeviceMatrix> DeviceMatrix::Create(Backend& backend, int64_t rows, int64_t cols,
                                          const std::vector<float>& values) {
  DeviceMatrix matrix;
  ASSIGN_OR_RETURN(matrix.view_, matrix.buffer_.View(backend, rows, cols));
  RETURN_IF_ERROR(backend.CopyIn(matrix.view_.data, values.data(), matrix.view_.size_bytes()));
  return matrix;
}

Result<std::vector<float>> DeviceMatrix::Read(Backend& backend) const {
  std::vector<float> values(static_cast<size_t>(view_.size()));
  RETURN_IF_ERROR(backend.CopyOut(values.data(), view_.data, view_.size_bytes()));
  return values;
}

std::vector<float> SelfTestValues(uint32_t stream, int64_t size, float scale) {
  std::vector<float> values(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t word = formats::RandomWord(7, 0, stream, static_cast<uint64_t>(i));
    const float uniform = static_cast<float>(word >> 8) * 0x1p-23f - 1.0f;
    values[static_cast<size_t>(i)] =
        formats::RoundBf16(uniform * scale * (i % 53 == 0 ? 8.0f : 1.0f));
  }
  return values;
}

Status ProveRecipe(Backend& backend, Backend& reference, const Recipe& recipe) {
  bool any = false;
  for (const LinearRecipe& linear : LinearRecipesOf(recipe)) {
    for (const Shape& shape : kShapes) {
      if (!CheckRecipeShape(linear, shape.tokens, shape.in, shape.out).ok()) continue;
      any = true;
      ASSIGN_OR_RETURN(const LayerResults got, RunLayer(backend, Support::kFast, linear, shape));
      ASSIGN_OR_RETURN(const LayerResults expected,
                       RunLayer(reference, Support::kReference, linear, shape));
      const std::string what =
          kRecipeProof + recipe.name +
          StrFormat(", layer of %lld tokens, %lld to %lld, ", static_cast<long long>(shape.tokens),
                    static_cast<long long>(shape.in), static_cast<long long>(shape.out));
      const auto near = [&](const LinearProduct& product, const char* name, const auto& a,
                            const auto& b) {
        return ExpectNear(what + name, a, b, ToleranceOf(linear, product));
      };
      RETURN_IF_ERROR(near(kFprop, "Y", got.y, expected.y));
      RETURN_IF_ERROR(near(kDgrad, "dX", got.dx, expected.dx));
      RETURN_IF_ERROR(near(kWgrad, "dW", got.dw, expected.dw));
    }
  }
  if (any) return OkStatus();
  return UnimplementedError("no shape of the self-test fits recipe '" + recipe.name + "'");
}

Status ProveRoundedState(Backend& backend, Backend& reference) {
  struct Case {
    StatePrecision precision;
    DType m, v;
  };
  const Case cases[] = {
      {{StateElem::kE4M3, StateElem::kF16, StateElem::kF16}, DType::kU8, DType::kF16},
      {{StateElem::kBf16, StateElem::kBf16, StateElem::kF32}, DType::kBF16, DType::kBF16},
      {{StateElem::kBf16Sr, StateElem::kBf16Sr, StateElem::kBf16Sr}, DType::kBF16, DType::kBF16}};
  for (const Case& c : cases) {
    ASSIGN_OR_RETURN(const std::vector<float> got,
                     WeightsAfterTwoUpdates(backend, c.precision, c.m, c.v));
    ASSIGN_OR_RETURN(const std::vector<float> expected,
                     WeightsAfterTwoUpdates(reference, c.precision, c.m, c.v));
    RETURN_IF_ERROR(ExpectNear(kStateProof, got, expected));
  }
  return OkStatus();
}

Status ProveWire(Backend& backend, Backend& reference) {
  ASSIGN_OR_RETURN(const std::vector<float> got, OnTheWire(backend));
  ASSIGN_OR_RETURN(const std::vector<float> expected, OnTheWire(reference));
  return ExpectNear(kWireProof, got, expected);
}

Status ProveWeightRule(Backend& backend, Backend& reference) {
  ASSIGN_OR_RETURN(const std::vector<float> got, AfterTheWeightRule(backend));
  ASSIGN_OR_RETURN(const std::vector<float> expected, AfterTheWeightRule(reference));
  return ExpectNear(kWeightRuleProof, got, expected);
}

}  // namespace nibble
