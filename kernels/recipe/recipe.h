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

// Element format of one operand. kF32: left alone. kBf16: rounded to BF16, no scale. kInt4C: the
// centred 16-level grid +-1/2, +-3/2, .., +-15/2 (QuEST). kInt4, kInt8: symmetric integers to 7,
// 127.
enum class Elem : uint8_t {
  kF32,
  kBf16,
  kE4M3,
  kE5M2,
  kE2M1,
  kE1M2,
  kE3M0,
  kInt4C,
  kInt4,
  kInt8,
};
// Which elements share a scale. kTensor: all. kToken: a row of X or dY. kOutputChannel: a row of W,
// a column of dY. kInputChannel: a column of W or X. kGroup: `group` neighbours along the
// contraction of the slot's GEMM. kTile: group x group elements.
enum class Block : uint8_t { kTensor, kToken, kOutputChannel, kInputChannel, kGroup, kTile };
// Scale rules; F, T and bounds are `scale_max`. kF32: F/amax. kP2: largest power of two with
// amax*enc <= F. kCurrent(P2): F/amax decoded by fl(1/enc), P2 clears the mantissa. kDelayed: the
// same from an amax history of `window`. kE8Floor, kE8Up: E8M0 of OCP MX, rounded down or up. kNv:
// E4M3 per group and one FP32 per outer scope. kU53: the same with UE5M3. kQuartet: E8M0 from the
// standard deviation. kA34: E8M0, elements times 3/4. kEden: kNv with corrected, stochastically
// rounded group scales. kQuest: alpha * RMS of the row.
enum class ScaleRule : uint8_t {
  kNone,
  kF32,
  kP2,
  kCurrent,
  kCurrentP2,
  kDelayed,
  kE8Floor,
  kE8Up,
  kNv,
  kU53,
  kQuartet,
  kA34,
  kEden,
  kQuest,
};
// Rounding to the element grid. The tie rules other than kEven exist for E2M1 only.
enum class Round : uint8_t { kEven, kHalfUp, kAway, kZero, kSr24, kTe8 };
// Where the operand comes from: kHp quantizes the BF16 source; kReuse takes the codes of the same
// tensor's forward (or dgrad) slot; kRequant quantizes what those codes decode to.
enum class Source : uint8_t { kHp, kReuse, kRequant };
enum class OccScope : uint8_t { kTensor, kToken };
// What happens to the clamped-off residual: lost; kept beside the codes in E4M3 or BF16; or kept as
// wider integer codes on the row's own scale, in half units: at most 127, or at most 112 with four
// significant bits, so that every code is an E4M3 value as well.
enum class OccComp : uint8_t { kNone, kE4M3, kBf16, kWide, kWideE4M3 };
constexpr bool IsWide(OccComp comp) { return comp == OccComp::kWide || comp == OccComp::kWideE4M3; }

// Outlier clamping: quantile `alpha` of the signed values on both sides, residual compensated.
struct Occ {
  bool enabled = false;
  double alpha = 0.99;  // (0.5, 1]
  OccScope scope = OccScope::kTensor;
  OccComp comp = OccComp::kNone;
  friend bool operator==(const Occ&, const Occ&) = default;
};

// Hadamard rotation of groups of `size` along the contraction; both operands of a GEMM share it.
// size 0: none. kFixed: the sixteen signs of Transformer Engine, repeated. kFresh: signs drawn for
// each call from (seed, step, stream of the GEMM).
enum class Signs : uint8_t { kNone, kFixed, kFresh };
struct Rotation {
  int size = 0;
  Signs signs = Signs::kNone;
  friend bool operator==(const Rotation&, const Rotation&) = default;
};

// Alternatives tried per group; the smallest error wins, the first one on a tie. 0 ends the list.
enum class ErrorMetric : uint8_t { kMse, kMae, kMax };
struct Alternatives {
  // Element values the group's amax is mapped to, in the order they are tried: {6, 4} is "four over
  // six".
  float maxima[2] = {0, 0};
  ErrorMetric metric = ErrorMetric::kMse;
  bool enabled() const { return maxima[1] > 0; }
  friend bool operator==(const Alternatives&, const Alternatives&) = default;
};

// Second-level scale of kNv, kU53 and kEden: one for the tensor, or one per 1 x 128 of a row.
enum class Outer : uint8_t { kTensor, k128 };
// Which part goes to another format, its product added: the mean vector over tokens, or the
// channels of largest norm (a share of them, rounded up to whole groups of 128).
enum class Split : uint8_t { kNone, kMean, kChannels };
enum class Mask : uint8_t { kNone, kBelow6, kTrust };
// kEven, kUp (toward +inf), kStochastic: how a group scale is rounded to its own format.
enum class ScaleRound : uint8_t { kEven, kUp, kStochastic };

// One operand slot.
struct Quant {
  Elem elem = Elem::kBf16;
  Block block = Block::kTensor;
  int group = 0;  // of kGroup and kTile
  ScaleRule scale = ScaleRule::kNone;
  float scale_max = 0;  // F, T or bound of the scale rule
  // kEden: the factor of the element grid; kQuest: alpha, in steps of the row's RMS.
  float scale_factor = 1;
  int correction_group = 0;  // kEden: elements of one correction factor, 16 or 128
  ScaleRound scale_round = ScaleRound::kEven;
  Outer outer = Outer::kTensor;
  int window = 1;  // amax history length
  int hold = 1;    // optimizer updates for which a tensor's outer amax serves, once measured
  Round round = Round::kEven;
  Rotation rotation;
  Occ pre;
  Split split = Split::kNone;
  float split_share = 0;          // of channels
  Elem split_elem = Elem::kBf16;  // format of the split-off part
  // Norms of the channels are gathered in `split_window` updates after update `split_from`, then
  // the set is fixed; before, nothing is split off. Window 0: each X chooses its own.
  int split_from = 0;
  int split_window = 0;
  Alternatives alternatives;
  bool recast_e4m3 = false;  // post e4m3_p2: decoded values cast to per-tensor E4M3
  Mask mask = Mask::kNone;
  bool fold = false;          // quantized after division by the other operand's outer scale
  double fallback_error = 0;  // > 0: BF16 when the relative error of the tensor is above
  Source source = Source::kHp;
  // > 0: a smooth maximum in place of amax, weights exp(T |x| grid max / amax). Of Wf, set by
  // estMax softmax(T).
  double smooth_max = 0;
  friend bool operator==(const Quant&, const Quant&) = default;

  bool has_scale() const { return elem != Elem::kF32 && elem != Elem::kBf16; }
  // Whether the scale comes from past maxima.
  bool has_history() const { return window > 1 || hold > 1 || scale == ScaleRule::kDelayed; }
  bool stochastic() const {
    return round == Round::kSr24 || round == Round::kTe8 ||
           scale_round == ScaleRound::kStochastic || rotation.signs == Signs::kFresh;
  }
};

// Xf, Wf feed fprop; Gd (dY), Wd feed dgrad; Gw (dY), Xw feed wgrad. The value is also the slot's
// number in the random stream: stream = layer * 8 + slot.
enum class Slot : uint8_t { kXf = 0, kWf = 1, kGd = 2, kWd = 3, kGw = 4, kXw = 5 };
inline constexpr int kSlotCount = 6;
const char* SlotName(Slot slot);  // "Xf", "Wf", ...
Slot ReuseTarget(Slot slot);      // Wd -> Wf, Gw -> Gd, Xw -> Xf; the others themselves

// Gradient through the weight quantizer, on the axis of scaled values. kSte: 1. kDge: clipped power
// derivative (arXiv 2501.17116). kPower, kSpline, kSigmoid: the surrogates of the design-space
// study (arXiv 2509.17791), clipped to [0.5, 1e4].
enum class Estimator : uint8_t { kSte, kDge, kPower, kSpline, kSigmoid };
// Gradient through the scale's amax: left out; to the largest element; through a softmax both ways;
// hard forward with a softmax backward.
enum class MaxGradient : uint8_t { kIgnore, kAbsmax, kSoftmax, kSoftmaxBackward };
struct WeightEstimator {
  Estimator kind = Estimator::kSte;
  double k = 5;              // power of kDge and kPower
  double clip = 3;           // upper bound of the DGE derivative
  bool extrapolate = false;  // DGE below -6 continues the first interval, as MS-AMP's kernel does
  double temperature = 0.5;  // of kSigmoid
  MaxGradient max_gradient = MaxGradient::kIgnore;
  double max_temperature = 1;  // of the softmax forms
  friend bool operator==(const WeightEstimator&, const WeightEstimator&) = default;

  bool dge() const { return kind == Estimator::kDge; }
};

struct LinearRecipe {
  std::array<Quant, kSlotCount> slots;
  WeightEstimator weight_estimator;
  friend bool operator==(const LinearRecipe&, const LinearRecipe&) = default;

  const Quant& slot(Slot s) const { return slots[static_cast<size_t>(s)]; }
  // The quantizer whose codes the slot uses: itself, or the one `reuse` points at.
  const Quant& Resolved(Slot s) const;
  // Whether Wd, Gw or Xw shares the codes of Wf, Gd or Xf: it says `reuse`, or has the very same
  // deterministic quantizer, which does not look along the contraction.
  bool SharesCodes(Slot s) const;
  // Whether the weight's estimator is a factor that the micro-batches of an update share: one that
  // depends on the weight and its scales alone, on the axes of the weight.
  bool HasSharedFactor() const;
};

// The linear layers of a block, for overrides: bit i of a mask is kind i.
enum class LinearKind : uint8_t { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown };
inline constexpr int kLinearKinds = 7;
const char* LinearKindName(LinearKind kind);  // "q", "k", "v", "o", "gate", "up", "down"
struct Override {
  uint32_t kinds = 0;  // bits of LinearKind
  // Blocks [first_block, last_block]; negative counts from the end (-1 is the last).
  int first_block = 0;
  int last_block = -1;
  LinearRecipe linear;
  friend bool operator==(const Override&, const Override&) = default;
};

// From a point of training on, these linear layers instead: at a share of the planned steps, or
// when the gradient norm of a sampled step falls under noise_multiple times the norm of its
// quantization error, whichever comes first. 0 switches a condition off.
struct Stage {
  double from_share = 0;      // (0, 1)
  double noise_multiple = 0;  // sqrt(3) in arXiv 2505.19115
  LinearRecipe linear;
  friend bool operator==(const Stage&, const Stage&) = default;
};

// Periodic weight rule (TetraJet-v2 OsciReset): from `from_share` of the steps, every `period`
// steps, elements whose quantized path over `window` steps is `ratio` times their own move take
// their quantized value.
struct WeightRule {
  bool enabled = false;
  double from_share = 0.6;
  int period = 200;
  int window = 50;
  double ratio = 8;
  friend bool operator==(const WeightRule&, const WeightRule&) = default;
};

// Precision of the optimizer's state and of gradients on the wire. kBf16Sr rounds stochastically.
enum class StateElem : uint8_t { kF32, kF16, kBf16, kE4M3, kBf16Sr };
constexpr int StateElemBytes(StateElem elem) {
  return elem == StateElem::kF32 ? 4 : elem == StateElem::kE4M3 ? 1 : 2;
}
struct StatePrecision {
  StateElem m = StateElem::kF32;
  StateElem v = StateElem::kF32;
  StateElem master = StateElem::kF32;
  friend bool operator==(const StatePrecision&, const StatePrecision&) = default;
};
enum class Communication : uint8_t { kF32, kBf16, kE4M3 };

struct Recipe {
  std::string name;
  std::string summary;  // one sentence for people
  LinearRecipe linear;
  std::vector<Override> overrides;  // later ones win
  std::vector<Stage> stages;        // in order
  WeightRule weight_rule;
  StatePrecision state;
  Communication communication = Communication::kF32;
  int bf16_blocks_first = 0;  // transformer blocks kept in BF16 at the start
  int bf16_blocks_last = 0;   // and at the end
  // Share of the blocks kept in BF16 at the end, rounded to the nearest, at least one when above 0.
  // The larger of the two counts.
  double bf16_share_last = 0;
  friend bool operator==(const Recipe&, const Recipe&) = default;

  // The recipe of one linear layer of block `index` of `count`: all BF16 when the block is
  // excluded, else that of `stage` (index in stages; -1 before the first), else the last override
  // that names the layer, else `linear`. Precondition: 0 <= index < count, -1 <= stage <
  // stages.size().
  const LinearRecipe& LinearFor(LinearKind kind, int index, int count, int stage = -1) const;
  // Whether block `index` of `count` is kept in BF16.
  bool KeepsBf16(int index, int count) const;
  // True when operands reach high-precision GEMMs (head, attention) rounded to BF16: every
  // recipe but one whose six slots are all fp32.
  bool rounds_to_bf16() const;
};

// Reads a recipe from JSON. INVALID_ARGUMENT names the field and lists what is known (unknown key,
// wrong type, value out of range) or names the rule of ValidateRecipe that is broken. `linear` of
// the recipe, an override or a stage may be the name of a built-in row: its linear part.
Result<Recipe> ParseRecipe(const Json& json);
// Parses the text, then as above.
Result<Recipe> ParseRecipeText(std::string_view text);
// The complete form (defaults of a slot omitted); ParseRecipe(RecipeToJson(r)) == r.
Json RecipeToJson(const Recipe& recipe);

// A rule that ties fields together: its name, as errors quote it, and what it demands.
struct RecipeRule {
  const char* name;
  const char* demand;
};
// Every rule of ValidateRecipe and CheckRecipeShape.
const std::vector<RecipeRule>& RecipeRules();

// Holds the recipe to RecipeRules(), sizes apart. INVALID_ARGUMENT "... breaks the rule 'NAME':
// ..".
Status ValidateRecipe(const Recipe& recipe);

// Whether a layer with `tokens` x `in` -> `out` can run: every dimension that a slot cuts into
// groups, tiles or rotated pieces is a multiple of them. INVALID_ARGUMENT names slot, size and
// divisor. tokens = 0: not known, not checked.
Status CheckRecipeShape(const LinearRecipe& linear, int64_t tokens, int64_t in, int64_t out);

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

// Canonical words of the axes: "e2m1", "1x16", "p2(448)", "sr24", "R32", "4over6(mse)".
std::string ElemName(Elem elem);
std::string BlockName(Block block, int group);
std::string ScaleName(const Quant& quant);
std::string RoundName(Round round);
std::string RotationName(const Rotation& rotation);              // "none" for size 0
std::string AlternativesName(const Alternatives& alternatives);  // "none" when off
int ElemBits(Elem elem);
float ElemMax(Elem elem);  // largest value; 0 for fp32 and bf16

}  // namespace nibble
