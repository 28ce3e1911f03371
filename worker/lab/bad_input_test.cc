// SPDX-License-Identifier: Apache-2.0
//
// Odd tensors through every slot and layer of every built-in recipe: never a crash, never a silent
// value, always a status. A row that this build does not execute is refused as UNIMPLEMENTED; the
// test prints which ones.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "base/strings.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "worker/lab/layer.h"
#include "worker/lab/operand.h"

namespace nibble {
namespace {

// A multiple of every block, rotation and correction group there is.
constexpr int64_t kSize = 128;

enum class Oddity {
  kNone,
  kNan,
  kInfinity,
  kFloatMax,
  kZeros,
  kHuge,
  kLargest,
  kSubnormal,
  kOneLarge
};
constexpr Oddity kOddities[] = {Oddity::kNone,     Oddity::kNan,       Oddity::kInfinity,
                                Oddity::kFloatMax, Oddity::kZeros,     Oddity::kHuge,
                                Oddity::kLargest,  Oddity::kSubnormal, Oddity::kOneLarge};
const char* NameOf(Oddity oddity) {
  static constexpr const char* kNames[] = {"none", "nan",     "infinity",  "float_max", "zeros",
                                           "huge", "largest", "subnormal", "one_large"};
  return kNames[static_cast<size_t>(oddity)];
}

Matrix OddMatrix(const char* name, Oddity oddity, int64_t rows, int64_t cols, uint32_t stream) {
  Matrix x = MakeMatrix(name, rows, cols);
  for (size_t i = 0; i < x.values.size(); ++i) {
    const uint32_t word = formats::RandomWord(5, 0, stream, i);
    x.values[i] = formats::RoundBf16(static_cast<float>(word >> 8) * 0x1p-23f - 1.0f);
    if (oddity == Oddity::kZeros) x.values[i] = i % 2 == 0 ? 0.0f : -0.0f;
    if (oddity == Oddity::kHuge) x.values[i] *= 0x1p120f;
    if (oddity == Oddity::kLargest) x.values[i] *= 0x1p127f;
    if (oddity == Oddity::kSubnormal) x.values[i] *= 0x1p-130f;
  }
  float& one = x.values[x.values.size() / 2];
  if (oddity == Oddity::kNan) one = std::numeric_limits<float>::quiet_NaN();
  if (oddity == Oddity::kInfinity) one = -std::numeric_limits<float>::infinity();
  if (oddity == Oddity::kFloatMax) one = std::numeric_limits<float>::max();  // infinite as BF16
  if (oddity == Oddity::kOneLarge) one = 1e30f;
  return x;
}

bool IsFinite(Oddity oddity) {
  return oddity != Oddity::kNan && oddity != Oddity::kInfinity && oddity != Oddity::kFloatMax;
}

bool AllFinite(const std::vector<float>& values) {
  for (const float value : values) {
    if (!std::isfinite(value)) return false;
  }
  return true;
}

// What a zero may decode to: QuEST's centred grid has no zero, and its step is at least 2e-8 / 15.
float ZeroOf(const Quant& quant) { return quant.elem == Elem::kInt4C ? 1e-8f : 0.0f; }

std::vector<float> Decoded(const Operand& operand) {
  for (const OutputTensor& tensor : operand.tensors) {
    if (tensor.name != "decoded") continue;
    std::vector<float> values(tensor.bytes.size() / sizeof(float));
    std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    return values;
  }
  ADD_FAILURE() << "no decoded values";
  return {};
}

class BadInputTest : public testing::Test {
 protected:
  void SetUp() override { backend_ = MakeBackend("cpu", {2, 0}).value(); }

  // The recipe, or nothing when this build refuses it; then it is noted.
  std::optional<Recipe> Built(const std::string& name) {
    const Result<Recipe> recipe = FindRecipe(name);
    if (!recipe.ok()) {
      Refuse(name, recipe.status());
      return std::nullopt;
    }
    return *recipe;
  }
  void Refuse(const std::string& name, const Status& status) {
    EXPECT_EQ(status.code(), StatusCode::kUnimplemented) << name << ": " << status.ToString();
    EXPECT_FALSE(status.message().empty()) << name;
    refused_.insert(name);
  }
  void TearDown() override {
    if (refused_.empty()) return;
    std::string names;
    for (const std::string& name : refused_) names += " " + name;
    std::printf("refused as UNIMPLEMENTED:%s\n", names.c_str());
  }

  void CheckOperand(const Recipe& recipe, Slot slot, Oddity oddity);
  void CheckLayer(const Recipe& recipe, Oddity oddity);

  std::unique_ptr<Backend> backend_;
  std::set<std::string> refused_;
};

void BadInputTest::CheckOperand(const Recipe& recipe, Slot slot, Oddity oddity) {
  const Matrix x = OddMatrix("x", oddity, kSize, kSize, 1);
  const Matrix other = OddMatrix("other", Oddity::kNone, kSize, kSize, 2);
  const Result<Operand> operand =
      QuantizeOperand(backend_.get(), recipe.linear, slot, {}, x, &other);
  if (!operand.ok()) return Refuse(recipe.name, operand.status());
  const std::string where = recipe.name + " " + SlotName(slot) + " " + NameOf(oddity);
  const std::vector<float> decoded = Decoded(*operand);
  ASSERT_EQ(decoded.size(), x.values.size()) << where;
  const QuantizationHealth& health = operand->health;
  if (operand->quant.has_scale()) {
    // What is not finite is counted. Clamping that keeps no residual takes an infinity away, as any
    // outlier; a NaN it does not.
    const Occ& occ = operand->quant.pre;
    const bool clamped = occ.enabled && occ.comp == OccComp::kNone && oddity != Oddity::kNan;
    if (!IsFinite(oddity) && !clamped) {
      EXPECT_GE(health.nonfinite_amax, 1) << where;
    }
    // What is counted by nobody is finite. The largest numbers may pass FP32's range on the way.
    if (health.nonfinite_amax == 0 && oddity != Oddity::kLargest) {
      EXPECT_TRUE(AllFinite(decoded)) << where;
    }
    if (oddity == Oddity::kNone) {
      EXPECT_EQ(health.nonfinite_amax, 0) << where;
    }
  }
  if (oddity == Oddity::kZeros) {
    for (const float value : decoded) ASSERT_LE(std::fabs(value), ZeroOf(operand->quant)) << where;
    EXPECT_EQ(health.nonfinite_amax, 0) << where;
  }
  // Equal calls give equal bits.
  const Result<Operand> again = QuantizeOperand(backend_.get(), recipe.linear, slot, {}, x, &other);
  ASSERT_TRUE(again.ok()) << where;
  for (size_t i = 0; i < operand->tensors.size(); ++i) {
    EXPECT_EQ(operand->tensors[i].bytes, again->tensors[i].bytes)
        << where << " " << operand->tensors[i].name;
  }
}

TEST_F(BadInputTest, EverySlotOfEveryRecipeTakesOddTensors) {
  for (const std::string& name : BuiltInRecipeNames()) {
    const std::optional<Recipe> recipe = Built(name);
    if (!recipe.has_value()) continue;
    for (int slot = 0; slot < kSlotCount; ++slot) {
      for (const Oddity oddity : kOddities) {
        CheckOperand(*recipe, static_cast<Slot>(slot), oddity);
      }
    }
  }
}

void BadInputTest::CheckLayer(const Recipe& recipe, Oddity oddity) {
  const auto layer = [&] {
    // A gradient of ones is as large as the rest; it is the input that is odd here.
    return MakeLayer(OddMatrix("X", oddity, kSize, kSize, 1),
                     OddMatrix("W", Oddity::kNone, kSize, kSize, 2),
                     OddMatrix("dY", Oddity::kNone, kSize, kSize, 3))
        .value();
  };
  LayerData fast = layer(), reference = layer();
  const std::string where = recipe.name + " " + NameOf(oddity);
  const Status status = RunLayer(backend_.get(), recipe.linear, {}, Support::kFast, &fast);
  if (!status.ok()) return Refuse(recipe.name, status);
  ASSERT_TRUE(RunLayer(backend_.get(), recipe.linear, {}, Support::kReference, &reference).ok())
      << where;
  const auto same = [](const Matrix& a, const Matrix& b) {
    return std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)) == 0;
  };
  EXPECT_TRUE(same(fast.y, reference.y)) << where << ": fast and reference differ in Y";
  EXPECT_TRUE(same(fast.dx, reference.dx)) << where << ": fast and reference differ in dX";
  EXPECT_TRUE(same(fast.dw, reference.dw)) << where << ": fast and reference differ in dW";
  EXPECT_TRUE(AllFinite(fast.dx.values)) << where << ": dX does not depend on X";
  if (oddity == Oddity::kNone || oddity == Oddity::kZeros || oddity == Oddity::kSubnormal) {
    EXPECT_TRUE(AllFinite(fast.y.values)) << where;
    EXPECT_TRUE(AllFinite(fast.dw.values)) << where;
  }
  if (oddity == Oddity::kZeros) {
    const float zero = ZeroOf(recipe.linear.Resolved(Slot::kXf)) * kSize * 8;
    for (const float value : fast.y.values) ASSERT_LE(std::fabs(value), zero) << where;
  }
}

TEST_F(BadInputTest, EveryLayerTakesOddInputsAndBothPathsAgree) {
  for (const std::string& name : BuiltInRecipeNames()) {
    const std::optional<Recipe> recipe = Built(name);
    if (!recipe.has_value()) continue;
    for (const Oddity oddity : kOddities) CheckLayer(*recipe, oddity);
  }
}

// Sizes that no block divides: taken, or refused with the rule.
TEST_F(BadInputTest, SizesThatNoBlockDividesAreTakenOrRefusedByRule) {
  const int64_t shapes[][2] = {{1, 1}, {1, 17}, {31, 1}, {7, 45}, {33, 129}};
  for (const std::string& name : BuiltInRecipeNames()) {
    const std::optional<Recipe> recipe = Built(name);
    if (!recipe.has_value()) continue;
    for (const auto& shape : shapes) {
      for (int slot = 0; slot < kSlotCount; ++slot) {
        const Matrix x = OddMatrix("x", Oddity::kNone, shape[0], shape[1], 1);
        // Folding slots divide by the scales along their own contraction: K of W, or of X.
        const bool wgrad = static_cast<Slot>(slot) == Slot::kGw;
        const Matrix other = OddMatrix("other", Oddity::kNone, wgrad ? shape[0] : shape[1], 24, 2);
        const Result<Operand> operand =
            QuantizeOperand(backend_.get(), recipe->linear, static_cast<Slot>(slot), {}, x, &other);
        const std::string where =
            StrFormat("%s %s (%lld, %lld)", name.c_str(), SlotName(static_cast<Slot>(slot)),
                      static_cast<long long>(shape[0]), static_cast<long long>(shape[1]));
        if (operand.ok()) {
          EXPECT_TRUE(AllFinite(Decoded(*operand))) << where;
        } else if (operand.status().code() == StatusCode::kInvalidArgument) {
          EXPECT_NE(operand.status().message().find("multiple of"), std::string::npos)
              << where << ": " << operand.status().ToString();
        } else {
          Refuse(name, operand.status());
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
