// SPDX-License-Identifier: Apache-2.0
//
// Every row and every combination of axes that the rules allow, against a second formulation:
// decoded operands of all six slots, then the three products, on other shapes and seeds than the
// goldens'. Both paths give the same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "base/strings.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "worker/lab/layer.h"
#include "worker/lab/operand.h"
#include "worker/lab/recipe_oracle.h"

namespace nibble {
namespace {

struct Shape {
  int64_t tokens, in, out;
};

enum class Fill { kFine, kCoarse, kZeros, kHuge, kTiny };

// kCoarse: multiples of 1/64 whose sums FP32 holds exactly, so that a rotation has one answer.
Matrix Filled(const char* name, int64_t rows, int64_t cols, uint32_t stream, uint64_t seed,
              double scale, Fill fill) {
  Matrix x = MakeMatrix(name, rows, cols);
  for (size_t i = 0; i < x.values.size(); ++i) {
    const uint32_t word = formats::RandomWord(seed, 7, stream, i);
    double value = static_cast<double>(word >> 8) * 0x1p-22 - 2.0;
    if (fill == Fill::kCoarse) value = (static_cast<double>(word % 257) - 128) / 64;
    if (word % 53 == 7) value *= 8;
    if (fill == Fill::kZeros) value = word % 2 == 0 ? 0.0 : -0.0;
    if (fill == Fill::kHuge) value *= 0x1p118;
    if (fill == Fill::kTiny) value *= 0x1p-134;
    x.values[i] = static_cast<float>(value * scale);
  }
  return x;
}

bool Rotates(const LinearRecipe& recipe) {
  for (const Quant& quant : recipe.slots) {
    if (quant.rotation.size > 0) return true;
  }
  return false;
}

class OracleTest : public testing::Test {
 protected:
  struct Case {
    std::string name;
    LinearRecipe recipe;
    Shape shape;
    uint64_t seed = 0;
    Fill fill = Fill::kFine;
  };

  void SetUp() override { backend_ = MakeBackend("cpu", {1, 0}).value(); }

  static const Matrix& SourceOf(const LayerData& data, Slot slot) {
    if (slot == Slot::kXf || slot == Slot::kXw) return data.x;
    return slot == Slot::kWf || slot == Slot::kWd ? data.w : data.dy;
  }

  Matrix Engine(const Case& c, Slot slot, const LinearStep& step, const LayerData& data) {
    const Matrix* other = slot == Slot::kGd ? &data.w : &data.x;
    Result<Operand> operand =
        QuantizeOperand(backend_.get(), c.recipe, slot, step, SourceOf(data, slot), other);
    EXPECT_TRUE(operand.ok()) << c.name << " " << operand.status().ToString();
    Matrix decoded = SourceOf(data, slot);
    if (!operand.ok()) return decoded;
    for (const OutputTensor& tensor : operand->tensors) {
      if (tensor.name != "decoded") continue;
      std::memcpy(decoded.values.data(), tensor.bytes.data(), tensor.bytes.size());
    }
    return decoded;
  }

  // The other operand's multipliers along the contraction; infinite where its codes are zero.
  std::vector<double> FoldOf(const Case& c, Slot slot, const oracle::Draw& draw,
                             const LayerData& data) {
    if (!c.recipe.slot(slot).fold) return {};
    const Slot forward = slot == Slot::kGd ? Slot::kWf : Slot::kXf;
    const Matrix& other = SourceOf(data, forward);
    const oracle::Result codes = oracle::Quantize(c.recipe, forward, draw, other);
    std::vector<double> fold;
    for (int64_t row = 0; row < other.rows; ++row) {
      bool zero = true;
      for (int64_t col = 0; col < other.cols; ++col) {
        zero &= codes.decoded.values[static_cast<size_t>(row * other.cols + col)] == 0;
      }
      fold.push_back(zero ? INFINITY : codes.enc[static_cast<size_t>(row * other.cols)]);
    }
    return fold;
  }

  // Elements that differ from the oracle beyond the last bits; those of a requantized slot may lie
  // on a threshold.
  void CheckSlot(const Case& c, Slot slot, const oracle::Draw& draw, const LayerData& data,
                 const Matrix& source, const Matrix& got, oracle::Result* expected) {
    *expected = oracle::Quantize(c.recipe, slot, draw, source, FoldOf(c, slot, draw, data));
    const Quant& quant = c.recipe.slot(slot);
    const bool requant = quant.source == Source::kRequant;
    // The BF16 after a rotation by fixed signs has thresholds of its own.
    const bool twice = quant.rotation.signs == Signs::kFixed;
    int64_t wrong = 0, unsure = 0;
    std::string first;
    for (size_t i = 0; i < got.values.size(); ++i) {
      const double a = static_cast<double>(got.values[i]);
      const double b = static_cast<double>(expected->decoded.values[i]);
      if (a == b || std::fabs(a - b) <= 1e-6 * std::fabs(b) + 0x1p-148) continue;
      if (requant && (twice || expected->unsure[i])) {
        ++unsure;
        continue;
      }
      if (wrong++ == 0) {
        first = StrFormat(" element %zu: %.9g, expected %.9g of %.9g", i, a, b,
                          static_cast<double>(source.values[i]));
      }
    }
    checked_ += static_cast<int64_t>(got.values.size());
    failures_ += wrong;
    EXPECT_EQ(wrong, 0) << c.name << " " << SlotName(slot) << " " << c.shape.tokens << " "
                        << c.shape.in << " " << c.shape.out << " seed " << c.seed << first;
    EXPECT_LE(unsure, 1 + static_cast<int64_t>(got.values.size()) / 100) << c.name;
  }

  static double At(const Matrix& m, bool turned, int64_t row, int64_t col) {
    return static_cast<double>(
        m.values[static_cast<size_t>(turned ? col * m.cols + row : row * m.cols + col)]);
  }

  // a (turned or not) times b; `bound` of FP32 accumulation.
  static std::vector<double> Product(const Matrix& a, bool turn_a, const Matrix& b, bool turn_b,
                                     std::vector<double>* bound) {
    const int64_t rows = turn_a ? a.cols : a.rows, depth = turn_a ? a.rows : a.cols;
    const int64_t cols = turn_b ? b.rows : b.cols;
    std::vector<double> out;
    bound->clear();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        double sum = 0, absolute = 0;
        for (int64_t d = 0; d < depth; ++d) {
          const double term = At(a, turn_a, r, d) * At(b, turn_b, d, c);
          sum += term;
          absolute += std::fabs(term);
        }
        out.push_back(sum);
        bound->push_back(4 * static_cast<double>(depth + 2) * 0x1p-24 * absolute + 0x1p-140);
      }
    }
    return out;
  }

  void CheckProduct(const Case& c, const char* what, const std::vector<double>& expected,
                    const std::vector<double>& bound, const Matrix& got) {
    for (size_t i = 0; i < expected.size(); ++i) {
      const double value = static_cast<double>(got.values[i]);
      if (std::fabs(expected[i]) + bound[i] > 3e38) continue;  // beyond FP32
      ASSERT_NEAR(value, expected[i], bound[i])
          << c.name << " " << what << " " << i << ", " << c.shape.tokens << " " << c.shape.in << " "
          << c.shape.out << " seed " << c.seed;
    }
  }

  // Through the mask and out of the rotation of a forward operand.
  void PullBack(const Case& c, Slot forward, const oracle::Draw& draw,
                const oracle::Result& operand, std::vector<double>* gradient,
                std::vector<double>* bound) {
    const Slot other = forward == Slot::kXf ? Slot::kWd : Slot::kXw;
    const bool rotated =
        c.recipe.SharesCodes(other) || c.recipe.slot(other).source == Source::kRequant;
    const bool masked = !operand.mask.empty();
    for (size_t i = 0; masked && i < gradient->size(); ++i) {
      if (!operand.mask[i]) (*gradient)[i] = 0;
    }
    if (c.recipe.slot(forward).rotation.size == 0 || !(rotated || masked)) return;
    *gradient = oracle::Rotate(c.recipe, forward, draw, true, *gradient, operand.decoded.rows,
                               operand.decoded.cols);
    double largest = 0, error = 0;
    for (const double g : *gradient) largest = std::max(largest, std::fabs(g));
    for (const double e : *bound) error = std::max(error, e);
    const double n = c.recipe.slot(forward).rotation.size;
    std::fill(bound->begin(), bound->end(), std::sqrt(n) * (error + 8 * 0x1p-24 * largest));
  }

  void Check(const Case& c) {
    const auto& [tokens, in, out] = c.shape;
    const int64_t before = failures_;
    LayerData data = MakeLayer(Filled("X", tokens, in, 1, c.seed, 1, c.fill),
                               Filled("W", out, in, 2, c.seed, 0x1p-4, c.fill),
                               Filled("dY", tokens, out, 3, c.seed, 0x1p-10, c.fill))
                         .value();
    LinearStep step;
    step.seed = c.seed;
    step.step = 3;
    const oracle::Draw draw = {c.seed, 3};
    LayerData reference = data;
    Status status = RunLayer(backend_.get(), c.recipe, step, Support::kFast, &data);
    EXPECT_TRUE(status.ok()) << c.name << " " << status.ToString();
    if (!status.ok()) return;
    ASSERT_TRUE(RunLayer(backend_.get(), c.recipe, step, Support::kReference, &reference).ok());
    for (const auto& [a, b] : {std::pair(&data.y, &reference.y), std::pair(&data.dx, &reference.dx),
                               std::pair(&data.dw, &reference.dw)}) {
      EXPECT_EQ(std::memcmp(a->values.data(), b->values.data(), 4 * a->values.size()), 0)
          << c.name << ": the two paths differ in " << a->name;
    }
    std::array<Matrix, kSlotCount> decoded;
    std::array<oracle::Result, kSlotCount> expected;
    for (const Slot slot : {Slot::kXf, Slot::kWf, Slot::kGd, Slot::kWd, Slot::kGw, Slot::kXw}) {
      const auto at = static_cast<size_t>(slot);
      const auto first = static_cast<size_t>(ReuseTarget(slot));
      const Quant& quant = c.recipe.slot(slot);
      decoded[at] = Engine(c, slot, step, data);
      if (c.recipe.SharesCodes(slot)) {
        EXPECT_EQ(decoded[at].values, decoded[first].values) << c.name << " " << SlotName(slot);
        continue;
      }
      const bool requant = quant.source == Source::kRequant;
      const Matrix& source = requant ? decoded[first] : SourceOf(data, slot);
      if (quant.has_scale()) {
        CheckSlot(c, slot, draw, data, source, decoded[at], &expected[at]);
      } else {
        expected[at].decoded = decoded[at];
      }
      if (HasFailure()) return;
    }
    if (failures_ != before) return;
    // Alone, W chooses its own channels; in the layer it follows X.
    if (c.recipe.slot(Slot::kWf).split == Split::kChannels) return;
    std::vector<double> bound;
    const auto of = [&](Slot slot) -> const Matrix& { return decoded[static_cast<size_t>(slot)]; };
    std::vector<double> product = Product(of(Slot::kXf), false, of(Slot::kWf), true, &bound);
    CheckProduct(c, "Y", product, bound, data.y);
    product = Product(of(Slot::kGd), false, of(Slot::kWd), false, &bound);
    PullBack(c, Slot::kXf, draw, expected[0], &product, &bound);
    CheckProduct(c, "dX", product, bound, data.dx);
    product = Product(of(Slot::kGw), true, of(Slot::kXw), false, &bound);
    PullBack(c, Slot::kWf, draw, expected[1], &product, &bound);
    const WeightEstimator& estimator = c.recipe.weight_estimator;
    if (estimator.max_gradient != MaxGradient::kIgnore) return;
    for (size_t i = 0; estimator.kind != Estimator::kSte && i < product.size(); ++i) {
      const double w = static_cast<double>(formats::RoundBf16(data.w.values[i]));
      const float y = static_cast<float>(w) * static_cast<float>(expected[1].enc[i]);
      const double x = std::fabs(y) > 6 && std::fabs(y) < 6.00001f ? std::copysign(6.0, y)
                                                                   : static_cast<double>(y);
      const double slope = oracle::Derivative(estimator, x);
      bound[i] = bound[i] * slope + std::fabs(product[i]) * slope * 4e-3;
      product[i] *= slope;
    }
    CheckProduct(c, "dW", product, bound, data.dw);
    ++layers_;
  }

  // Every shape of the list that the recipe's blocks divide, at most `most`.
  void CheckShapes(const std::string& name, const LinearRecipe& recipe, size_t most) {
    static constexpr Shape kShapes[] = {{1, 1, 1},       {37, 131, 67},  {2, 3, 5},
                                        {48, 80, 16},    {32, 96, 64},   {64, 32, 160},
                                        {128, 128, 128}, {128, 256, 384}};
    size_t done = 0;
    for (const Shape& shape : kShapes) {
      if (!CheckRecipeShape(recipe, shape.tokens, shape.in, shape.out).ok()) continue;
      const Fill fill = Rotates(recipe) ? Fill::kCoarse : Fill::kFine;
      Check({name, recipe, shape, 1000 + done * 17, fill});
      if (++done == most) break;
    }
    EXPECT_GT(done, 0u) << name;
  }

  std::unique_ptr<Backend> backend_;
  int64_t layers_ = 0, checked_ = 0, failures_ = 0;
};

TEST_F(OracleTest, EveryRowOnOtherShapesAndSeeds) {
  for (const std::string& name : BuiltInRecipeNames()) {
    const Recipe recipe = *FindRecipe(name);
    CheckShapes(name, recipe.linear, 4);
    for (size_t i = 0; i < recipe.overrides.size(); ++i) {
      CheckShapes(name + " override", recipe.overrides[i].linear, 2);
    }
    for (size_t i = 0; i < recipe.stages.size(); ++i) {
      CheckShapes(name + " stage", recipe.stages[i].linear, 2);
    }
  }
  std::printf("%lld layers, %lld operand elements\n", static_cast<long long>(layers_),
              static_cast<long long>(checked_));
}

// Groups, tiles and outer scopes that the tensor does not fill: the last one is shorter.
TEST_F(OracleTest, OperandsThatNoBlockDivides) {
  for (const std::string& name : BuiltInRecipeNames()) {
    const LinearRecipe recipe = FindRecipe(name)->linear;
    for (const Shape& shape :
         {Shape{5, 37, 19}, {1, 1, 1}, {33, 1, 130}, {131, 17, 2}, {1, 200, 257}}) {
      const Case c = {name + " ragged", recipe, shape, 31, Fill::kFine};
      const auto& [tokens, in, out] = shape;
      const LayerData data = MakeLayer(Filled("X", tokens, in, 1, c.seed, 1, c.fill),
                                       Filled("W", out, in, 2, c.seed, 0x1p-4, c.fill),
                                       Filled("dY", tokens, out, 3, c.seed, 0x1p-10, c.fill))
                                 .value();
      LinearStep step;
      step.seed = c.seed;
      step.step = 3;
      for (int i = 0; i < kSlotCount; ++i) {
        const Slot slot = static_cast<Slot>(i);
        const Quant& quant = recipe.slot(slot);
        const bool own = quant.has_scale() && !recipe.SharesCodes(slot);
        const Quant& first = recipe.slot(ReuseTarget(slot));
        if (!own || quant.rotation.size > 0 || first.rotation.size > 0) continue;
        const Matrix& source = SourceOf(data, slot);
        oracle::Result expected;
        CheckSlot(c, slot, {c.seed, 3}, data, source, Engine(c, slot, step, data), &expected);
      }
    }
  }
  std::printf("%lld operand elements\n", static_cast<long long>(checked_));
}

// All six slots of one kind; block names turn into the axis each slot has.
LinearRecipe Alike(const Quant& quant) {
  LinearRecipe recipe;
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    Quant own = quant;
    const bool weight = slot == Slot::kWf || slot == Slot::kWd;
    const bool gradient = slot == Slot::kGd || slot == Slot::kGw;
    if (quant.block == Block::kToken && weight) own.block = Block::kOutputChannel;
    if (quant.block == Block::kOutputChannel && !weight && !gradient) own.block = Block::kToken;
    if (quant.block == Block::kInputChannel && gradient) own.block = Block::kOutputChannel;
    if (!gradient && !weight) {
      own.pre = quant.pre;
    } else {
      own.pre = {};
    }
    if (slot != Slot::kXf && slot != Slot::kWf) own.mask = Mask::kNone;
    recipe.slots[static_cast<size_t>(i)] = own;
  }
  return recipe;
}

class AxesTest : public OracleTest {
 protected:
  // Runs what the rules allow; the rest is refused by a rule's name.
  void Try(const std::string& name, const LinearRecipe& linear, size_t shapes = 1) {
    Recipe recipe;
    recipe.name = "axes";
    recipe.linear = linear;
    const Status valid = ValidateRecipe(recipe);
    if (!valid.ok()) {
      EXPECT_NE(valid.message().find("breaks the rule '"), std::string::npos) << valid.message();
      ++refused_;
      return;
    }
    ++allowed_;
    // As a person writes it, and back.
    const nibble::Result<Recipe> parsed = ParseRecipe(RecipeToJson(recipe));
    ASSERT_TRUE(parsed.ok()) << name << " " << parsed.status().ToString();
    EXPECT_EQ(*parsed, recipe) << name << RecipeToJson(recipe).Dump();
    CheckShapes(name, linear, shapes);
  }
  void Report(const char* what) const {
    std::printf("%s: %lld combinations run, %lld refused by a rule\n", what,
                static_cast<long long>(allowed_), static_cast<long long>(refused_));
  }
  static Quant Of(Elem elem, Block block, int group, ScaleRule scale) {
    Quant quant;
    quant.elem = elem;
    quant.block = block;
    quant.group = group;
    quant.scale = scale;
    quant.scale_max = ElemMax(elem);
    if (scale == ScaleRule::kNv || scale == ScaleRule::kU53) quant.scale_max = 448;
    if (scale == ScaleRule::kDelayed) quant.window = 4;
    if (scale == ScaleRule::kQuartet || scale == ScaleRule::kA34 || scale == ScaleRule::kE8Floor ||
        scale == ScaleRule::kQuest) {
      quant.scale_max = 0;
    }
    if (scale == ScaleRule::kQuest) quant.scale_factor = 2.51393f;
    if (scale == ScaleRule::kEden) {
      quant.scale_max = 256;
      quant.scale_factor = 0.988125f;
      quant.correction_group = group;
      quant.scale_round = ScaleRound::kStochastic;
    }
    return quant;
  }
  static std::string NameOf(const Quant& quant) {
    return ElemName(quant.elem) + " " + BlockName(quant.block, quant.group) + " " +
           ScaleName(quant) + " " + RoundName(quant.round) + " " + RotationName(quant.rotation);
  }
  int64_t allowed_ = 0, refused_ = 0;
};

constexpr Elem kElems[] = {Elem::kE2M1, Elem::kE4M3, Elem::kE5M2, Elem::kE1M2,
                           Elem::kE3M0, Elem::kInt4, Elem::kInt8, Elem::kInt4C};
constexpr ScaleRule kRules[] = {ScaleRule::kF32,       ScaleRule::kP2,      ScaleRule::kCurrent,
                                ScaleRule::kCurrentP2, ScaleRule::kDelayed, ScaleRule::kE8Floor,
                                ScaleRule::kE8Up,      ScaleRule::kNv,      ScaleRule::kU53,
                                ScaleRule::kQuartet,   ScaleRule::kA34,     ScaleRule::kEden,
                                ScaleRule::kQuest};
constexpr Round kRounds[] = {Round::kEven, Round::kHalfUp, Round::kAway,
                             Round::kZero, Round::kSr24,   Round::kTe8};
struct BlockOf {
  Block block;
  int group;
};
constexpr BlockOf kBlocks[] = {{Block::kTensor, 0}, {Block::kToken, 0},  {Block::kInputChannel, 0},
                               {Block::kGroup, 16}, {Block::kGroup, 32}, {Block::kTile, 16}};

TEST_F(AxesTest, FormatsBlocksScalesAndRoundings) {
  for (const Elem elem : kElems) {
    for (const auto& [block, group] : kBlocks) {
      for (const ScaleRule rule : kRules) {
        for (const Round round : kRounds) {
          Quant quant = Of(elem, block, group, rule);
          quant.round = round;
          Try(NameOf(quant), Alike(quant));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  Report("format, block, scale, rounding");
}

TEST_F(AxesTest, RotationsSecondLevelsAndAlternatives) {
  for (const ScaleRule rule : {ScaleRule::kNv, ScaleRule::kU53, ScaleRule::kEden, ScaleRule::kA34,
                               ScaleRule::kQuartet, ScaleRule::kE8Up, ScaleRule::kF32}) {
    for (const int group : {16, 32, 128}) {
      for (const int size : {0, 16, 32, 128}) {
        for (const Signs signs : {Signs::kNone, Signs::kFixed, Signs::kFresh}) {
          for (const Outer outer : {Outer::kTensor, Outer::k128}) {
            if (size == 0 && signs != Signs::kNone) continue;
            const bool large = size == 128 || group == 128 || outer == Outer::k128;
            if (large && rule != ScaleRule::kNv && rule != ScaleRule::kEden) continue;
            Quant quant = Of(Elem::kE2M1, Block::kGroup, group, rule);
            quant.rotation = {size, signs};
            quant.outer = outer;
            if (rule == ScaleRule::kEden && outer == Outer::k128) continue;
            Try(NameOf(quant), Alike(quant));
          }
        }
      }
    }
  }
  for (const auto& [block, group] : {BlockOf{Block::kGroup, 16}, BlockOf{Block::kTile, 16}}) {
    for (const ScaleRound round : {ScaleRound::kUp, ScaleRound::kStochastic}) {
      for (const ScaleRule rule : {ScaleRule::kNv, ScaleRule::kU53, ScaleRule::kF32}) {
        Quant quant = Of(Elem::kE2M1, block, group, rule);
        quant.scale_round = round;
        Try(NameOf(quant) + " scale round", Alike(quant), 2);
      }
    }
    for (const ErrorMetric metric : {ErrorMetric::kMse, ErrorMetric::kMae, ErrorMetric::kMax}) {
      for (const float second : {4.0f, 3.0f, 5.0f}) {
        for (const Round round : kRounds) {
          Quant quant = Of(Elem::kE2M1, block, group, ScaleRule::kNv);
          quant.scale_max = second == 3 ? 224 : 256;
          quant.alternatives.maxima[0] = 6;
          quant.alternatives.maxima[1] = second;
          quant.alternatives.metric = metric;
          quant.round = round;
          Try(NameOf(quant) + AlternativesName(quant.alternatives), Alike(quant));
        }
      }
    }
  }
  Report("rotation, second level, alternatives");
}

TEST_F(AxesTest, OutliersMasksRecastsAndFallbacks) {
  for (const auto& [block, group] : kBlocks) {
    for (const ScaleRule rule : {ScaleRule::kF32, ScaleRule::kP2, ScaleRule::kCurrent,
                                 ScaleRule::kNv, ScaleRule::kE8Floor, ScaleRule::kQuartet}) {
      for (const OccScope scope : {OccScope::kTensor, OccScope::kToken}) {
        for (const OccComp comp :
             {OccComp::kNone, OccComp::kE4M3, OccComp::kBf16, OccComp::kWide, OccComp::kWideE4M3}) {
          for (const double alpha : {0.9, 0.97, 1.0}) {
            Quant quant = Of(Elem::kE2M1, block, group, rule);
            quant.pre = {true, alpha, scope, comp};
            Try(NameOf(quant) + " occ " + std::to_string(static_cast<int>(comp)), Alike(quant), 2);
          }
        }
      }
      Quant quant = Of(Elem::kE2M1, block, group, rule);
      quant.recast_e4m3 = true;
      Try(NameOf(quant) + " recast", Alike(quant), 2);
      quant.recast_e4m3 = false;
      quant.mask = Mask::kBelow6;
      Try(NameOf(quant) + " lt6", Alike(quant), 2);
      quant.mask = Mask::kNone;
      for (const double error : {0.001, 0.1, 0.9}) {
        quant.fallback_error = error;
        Try(NameOf(quant) + " fallback", Alike(quant), 2);
      }
    }
  }
  Report("outliers, mask, recast, fallback");
}

TEST_F(AxesTest, EstimatorsSharedCodesAndFolds) {
  for (const Estimator kind : {Estimator::kSte, Estimator::kDge, Estimator::kPower,
                               Estimator::kSpline, Estimator::kSigmoid}) {
    for (const auto& [block, group] : kBlocks) {
      for (const ScaleRule rule :
           {ScaleRule::kF32, ScaleRule::kP2, ScaleRule::kNv, ScaleRule::kE8Up, ScaleRule::kU53}) {
        for (const double k : {3.0, 5.0, 10.0}) {
          LinearRecipe recipe = Alike(Of(Elem::kE2M1, block, group, rule));
          recipe.weight_estimator.kind = kind;
          if (kind == Estimator::kDge || kind == Estimator::kPower) recipe.weight_estimator.k = k;
          Try(std::string("estimator ") + NameOf(recipe.slots[0]), recipe);
        }
      }
    }
  }
  for (const Source source : {Source::kReuse, Source::kRequant}) {
    for (const auto& [block, group] : kBlocks) {
      for (const ScaleRule rule : {ScaleRule::kF32, ScaleRule::kNv, ScaleRule::kE8Floor}) {
        LinearRecipe recipe = Alike(Of(Elem::kE2M1, block, group, rule));
        for (const Slot slot : {Slot::kWd, Slot::kXw}) {
          Quant& quant = recipe.slots[static_cast<size_t>(slot)];
          if (source == Source::kReuse) quant = Quant();
          quant.source = source;
        }
        Try(std::string("source ") + NameOf(recipe.slots[0]), recipe, 2);
      }
    }
  }
  for (const Elem elem : {Elem::kE2M1, Elem::kE4M3, Elem::kE5M2, Elem::kInt8, Elem::kInt4}) {
    for (const Round round : {Round::kEven, Round::kSr24}) {
      for (const OccComp comp :
           {OccComp::kNone, OccComp::kE4M3, OccComp::kWide, OccComp::kWideE4M3}) {
        LinearRecipe recipe = FindRecipe("fp4_fold4")->linear;
        recipe.slots[0].pre.comp = comp;
        for (const Slot slot : {Slot::kGd, Slot::kGw}) {
          Quant& quant = recipe.slots[static_cast<size_t>(slot)];
          quant.elem = elem;
          quant.scale_max = ElemMax(elem);
          quant.round = round;
        }
        Try(std::string("fold ") + ElemName(elem) + " " + RoundName(round), recipe, 3);
      }
    }
  }
  Report("estimator, source, fold");
}

// Zeros, values near both ends of FP32: the same formulas hold.
TEST_F(AxesTest, TheEndsOfTheRange) {
  for (const std::string& name : BuiltInRecipeNames()) {
    const LinearRecipe recipe = FindRecipe(name)->linear;
    for (const Fill fill : {Fill::kZeros, Fill::kHuge, Fill::kTiny}) {
      const Shape shape = Rotates(recipe) || !CheckRecipeShape(recipe, 7, 5, 3).ok()
                              ? Shape{128, 128, 128}
                              : Shape{7, 5, 3};
      Check({name + StrFormat(" fill %d", static_cast<int>(fill)), recipe, shape, 77, fill});
    }
  }
}

}  // namespace
}  // namespace nibble
