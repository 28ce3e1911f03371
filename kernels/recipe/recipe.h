// SPDX-License-Identifier: Apache-2.0
//
// Recipe: how each GEMM of a linear layer rounds its operands, as data.
//
// Purpose: one struct that names, for fprop (Y = X W^T), dgrad (dX = dY W) and wgrad
// (dW = dY^T X), the format, block, scale rule, rounding and outlier policy of both operands, plus
// the gradient estimator, the blocks kept in BF16 and the optimizer-state precision. The model
// never branches on a recipe's name.
// Thread-safety: value types and pure functions. Ownership: owns its strings.
// Depends on base only: the command line and the controller validate recipes without kernels.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace nibble {

// Element format of one operand. kF32: left alone. kBf16: rounded to BF16, no scale.
enum class Elem : uint8_t { kF32, kBf16, kE4M3, kE5M2, kE2M1 };
// Which elements share a scale: all; a row of X or dY (token); a row of W (output channel).
enum class Block : uint8_t { kTensor, kToken, kOutputChannel };
// Scale rules: f32(F) = F/amax; p2(F) = largest power of two with amax*enc <= F;
// cur(F) = F/amax multiplied by fl(1/enc) on decode; cur(F,p2) = the same with mantissa cleared.
enum class ScaleRule : uint8_t { kNone, kF32, kP2, kCurrent, kCurrentP2 };
// Rounding to the element grid. The tie rules other than kEven exist for E2M1 only.
enum class Round : uint8_t { kEven, kHalfUp, kAway, kZero, kSr24, kTe8 };
// Where the operand comes from: kHp quantizes the BF16 source; kReuse takes the codes of the same
// tensor's forward (or dgrad) slot.
enum class Source : uint8_t { kHp, kReuse };
enum class OccScope : uint8_t { kTensor, kToken };
// What happens to the clamped-off residual.
enum class OccComp : uint8_t { kNone, kE4M3, kBf16 };

// Outlier clamping: quantile `alpha` of the signed values on both sides, residual compensated.
struct Occ {
  bool enabled = false;
  double alpha = 0.99;  // (0.5, 1]
  OccScope scope = OccScope::kTensor;
  OccComp comp = OccComp::kNone;
  friend bool operator==(const Occ&, const Occ&) = default;
};

// One operand slot.
struct Quant {
  Elem elem = Elem::kBf16;
  Block block = Block::kTensor;
  ScaleRule scale = ScaleRule::kNone;
  float scale_max = 0;  // F of the scale rule
  Round round = Round::kEven;
  Occ pre;
  Source source = Source::kHp;
  friend bool operator==(const Quant&, const Quant&) = default;

  bool has_scale() const { return elem != Elem::kF32 && elem != Elem::kBf16; }
  bool stochastic() const { return round == Round::kSr24 || round == Round::kTe8; }
};

// Xf, Wf feed fprop; Gd (dY), Wd feed dgrad; Gw (dY), Xw feed wgrad. The value is also the slot's
// number in the random stream: stream = layer * 8 + slot.
enum class Slot : uint8_t { kXf = 0, kWf = 1, kGd = 2, kWd = 3, kGw = 4, kXw = 5 };
inline constexpr int kSlotCount = 6;
const char* SlotName(Slot slot);  // "Xf", "Wf", ...

// Gradient through the weight quantizer.
struct WeightEstimator {
  bool dge = false;  // false: straight-through
  double k = 5;      // power of the surrogate
  double clip = 3;   // upper bound of the derivative
  friend bool operator==(const WeightEstimator&, const WeightEstimator&) = default;
};

struct LinearRecipe {
  std::array<Quant, kSlotCount> slots;
  WeightEstimator weight_estimator;
  friend bool operator==(const LinearRecipe&, const LinearRecipe&) = default;

  const Quant& slot(Slot s) const { return slots[static_cast<size_t>(s)]; }
  // The quantizer whose codes the slot uses: itself, or the one `reuse` points at.
  const Quant& Resolved(Slot s) const;
  // Whether Wd, Gw or Xw shares the codes of Wf, Gd or Xf: it says `reuse`, or has the very same
  // deterministic quantizer.
  bool SharesCodes(Slot s) const;
};

struct Recipe {
  std::string name;
  std::string summary;  // one sentence for people
  LinearRecipe linear;
  int bf16_blocks_first = 0;  // transformer blocks kept in BF16 at the start
  int bf16_blocks_last = 0;   // and at the end
  friend bool operator==(const Recipe&, const Recipe&) = default;

  // The linear recipe of block `index` of `count`: all BF16 when the block is excluded.
  // Precondition: 0 <= index < count.
  LinearRecipe LinearForBlock(int index, int count) const;
  // True when operands reach high-precision GEMMs (head, attention) rounded to BF16: every
  // recipe but one whose six slots are all fp32.
  bool rounds_to_bf16() const;
};

// Reads a recipe from JSON. INVALID_ARGUMENT names the field and lists what is known (unknown key,
// wrong type, value out of range, rule of ValidateRecipe broken). UNIMPLEMENTED names an axis value
// that is a known method but not built in this release, and what is built.
Result<Recipe> ParseRecipe(const Json& json);
// Parses the text, then as above.
Result<Recipe> ParseRecipeText(std::string_view text);
// The complete form (defaults of a slot omitted); ParseRecipe(RecipeToJson(r)) == r.
Json RecipeToJson(const Recipe& recipe);

// The rules that tie fields together: tie rules only for E2M1, DGE needs an E2M1 weight, reuse
// points at a slot that holds codes, blocks that exist for the slot's tensor. INVALID_ARGUMENT.
Status ValidateRecipe(const Recipe& recipe);

// Built-in rows, in the order they are listed to people.
std::vector<std::string> BuiltInRecipeNames();
// NOT_FOUND lists the known names, with the nearest one suggested.
Result<Recipe> FindRecipe(std::string_view name);

// A string names a built-in row; an object is a recipe of the user's own.
Result<Recipe> RecipeFromField(const Json& name_or_object);

// One line per slot and one for the estimator: "Xf: E2M1 (4 bit), scale 6/amax per token, ...".
std::vector<std::string> DescribeRecipe(const Recipe& recipe);

// Things a person should know that are no errors, for a layer with `tokens` x `in` -> `out`:
// token-wise clamping that clamps nothing, and the like.
std::vector<std::string> RecipeWarnings(const Recipe& recipe, int64_t tokens, int64_t in);

// The precision a GEMM really has: the wider operand decides, and reused codes whose scale lies
// along the contraction make it a decoded GEMM.
enum class PrecisionClass : uint8_t { kFp32, kBf16, kFp8, kFp4 };
const char* PrecisionClassName(PrecisionClass value);  // "fp32", "bf16", "fp8", "fp4"
struct GemmPrecision {
  PrecisionClass left;    // X or dY
  PrecisionClass right;   // W, or X in wgrad
  PrecisionClass result;  // what a unit that multiplies codes would run
  bool native_fp4;        // both operands are FP4 codes whose scales factor out of the sum
  std::string reason;     // why not native, "" when native
};
struct RecipePrecision {
  GemmPrecision fprop, dgrad, wgrad;
};
RecipePrecision PrecisionOf(const LinearRecipe& linear);

// Bits at rest per element of the forward copies, scales and residual included, for estimates.
double SavedInputBits(const LinearRecipe& linear, int64_t in);
double SavedWeightBits(const LinearRecipe& linear, int64_t in);

// Canonical words of the enums ("e2m1", "tok", "p2(448)", ...).
std::string ElemName(Elem elem);
std::string BlockName(Block block);
std::string ScaleName(ScaleRule rule, float scale_max);
std::string RoundName(Round round);
int ElemBits(Elem elem);
float ElemMax(Elem elem);  // largest value; 0 for fp32 and bf16

}  // namespace nibble
