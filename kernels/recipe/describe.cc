// SPDX-License-Identifier: Apache-2.0
//
// What a recipe means, for people.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/formats/occ.h"
#include "kernels/recipe/product_path.h"
#include "kernels/recipe/words.h"

namespace nibble {
namespace {

std::string ElemTitle(Elem elem) {
  std::string title = ElemName(elem);
  for (char& c : title) c = static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  return title + StrFormat(" (%d bit)", ElemBits(elem));
}

std::string BlockTitle(const Quant& quant) {
  switch (quant.block) {
    case Block::kTensor:
      return "tensor";
    case Block::kToken:
      return "token";
    case Block::kOutputChannel:
      return "output channel";
    case Block::kInputChannel:
      return "input channel";
    case Block::kGroup:
      return StrFormat("%d along the contraction", quant.group);
    case Block::kTile:
      return StrFormat("tile of %dx%d", quant.group, quant.group);
  }
  return "?";
}

std::string ScaleTitle(const Quant& quant) {
  const double max = static_cast<double>(quant.scale_max);
  const std::string per = " per " + BlockTitle(quant);
  switch (quant.scale) {
    case ScaleRule::kNone:
      return "";
    case ScaleRule::kF32:
    case ScaleRule::kCurrent:
      return StrFormat(", scale %g/amax", max) + per;
    case ScaleRule::kP2:
      return StrFormat(", power-of-two scale to at most %g", max) + per;
    case ScaleRule::kCurrentP2:
      return StrFormat(", scale %g/amax cut to a power of two", max) + per;
    case ScaleRule::kDelayed:
      return StrFormat(", scale %g over the largest amax of the steps before", max) + per;
    case ScaleRule::kE8Floor:
      return ", E8M0 scale rounded down" + per;
    case ScaleRule::kE8Up:
      return StrFormat(", E8M0 scale rounded up to at most %g", max) + per;
    case ScaleRule::kNv:
      return StrFormat(", E4M3 scale up to %g", max) + per;
    case ScaleRule::kU53:
      return StrFormat(", UE5M3 scale up to %g", max) + per;
    case ScaleRule::kQuartet:
      return ", E8M0 scale from the standard deviation" + per;
    case ScaleRule::kA34:
      return ", E8M0 scale of 3/4 of the values" + per;
    case ScaleRule::kEden:
      return StrFormat(", E4M3 scale up to %g%s, corrected per %d,", max, per.c_str(),
                       quant.correction_group) +
             StrFormat(" grid factor %s", recipe_words::FloatText(quant.scale_factor).c_str());
    case ScaleRule::kQuest:
      return StrFormat(", scale %g RMS", static_cast<double>(quant.scale_factor)) + per;
  }
  return "";
}

std::string OccTitle(const Occ& occ) {
  if (!occ.enabled) return "";
  static constexpr const char* kComp[] = {"outliers dropped", "outliers kept in E4M3",
                                          "outliers kept in BF16",
                                          "outliers kept as 8-bit codes on the same scale",
                                          "outliers kept as E4M3 codes on the same scale"};
  return StrFormat(", clamped at quantile %g of the %s, %s", occ.alpha,
                   occ.scope == OccScope::kTensor ? "tensor" : "token",
                   kComp[static_cast<int>(occ.comp)]);
}

std::string RotationTitle(const Rotation& rotation) {
  if (rotation.size == 0) return "";
  const char* signs = rotation.signs == Signs::kNone    ? ""
                      : rotation.signs == Signs::kFixed ? " with fixed signs"
                                                        : " with fresh signs";
  return StrFormat(", rotated by Hadamard of %d%s", rotation.size, signs);
}

std::string ExtraTitle(Slot slot, const Quant& quant) {
  std::string line;
  if (quant.outer == Outer::k128) line += ", an FP32 scale over each 128";
  if (quant.scale_round == ScaleRound::kUp) line += ", scales rounded up";
  if (quant.scale_round == ScaleRound::kStochastic) line += ", scales rounded stochastically";
  if (quant.window > 1) line += StrFormat(", amax of %d steps", quant.window);
  if (quant.hold > 1) line += StrFormat(", the tensor's amax held for %d steps", quant.hold);
  if (quant.round != Round::kEven) line += ", rounding " + RoundName(quant.round);
  if (quant.alternatives.enabled()) {
    line += ", the better of " + AlternativesName(quant.alternatives);
  }
  if (quant.split == Split::kMean) {
    line += ", the mean over tokens apart in " + ElemName(quant.split_elem);
  }
  if (quant.split == Split::kChannels) {
    line +=
        StrFormat(", %g %% of the channels in %s", 100.0 * static_cast<double>(quant.split_share),
                  ElemName(quant.split_elem).c_str());
    if (quant.split_window > 0) {
      line += StrFormat(", chosen in steps %d to %d", quant.split_from + 1,
                        quant.split_from + quant.split_window);
    }
  }
  if (quant.recast_e4m3) line += ", then recast to E4M3";
  if (quant.mask == Mask::kBelow6) line += ", gradient masked where it saturates";
  if (quant.mask == Mask::kTrust) line += ", gradient masked where the error is large";
  if (quant.fold) {
    line += slot == Slot::kGd ? ", the scales of W folded in" : ", the scales of X folded in";
  }
  if (quant.fallback_error > 0) {
    line += StrFormat(", BF16 when the relative error is above %g", quant.fallback_error);
  }
  return line;
}

std::string SlotLine(const LinearRecipe& linear, Slot slot) {
  const Quant& quant = linear.slot(slot);
  std::string line = std::string(SlotName(slot)) + ": ";
  const char* target = SlotName(ReuseTarget(slot));
  if (quant.source == Source::kReuse) {
    return line + "the codes of " + target + ", " + ElemTitle(linear.Resolved(slot).elem);
  }
  if (quant.source == Source::kRequant) line += std::string("what ") + target + " decodes to, as ";
  return line + ElemTitle(quant.elem) + RotationTitle(quant.rotation) + ScaleTitle(quant) +
         OccTitle(quant.pre) + ExtraTitle(slot, quant);
}

std::string EstimatorLine(const WeightEstimator& estimator) {
  std::string line = "weight gradient: ";
  switch (estimator.kind) {
    case Estimator::kSte:
      line += "straight-through";
      break;
    case Estimator::kDge:
      line += StrFormat("DGE, k = %g, at most %g", estimator.k, estimator.clip);
      break;
    case Estimator::kPower:
      line += StrFormat("power surrogate, k = %g", estimator.k);
      break;
    case Estimator::kSpline:
      line += "linear spline surrogate";
      break;
    case Estimator::kSigmoid:
      line += StrFormat("sigmoid surrogate, temperature %g", estimator.temperature);
      break;
  }
  if (estimator.max_gradient == MaxGradient::kIgnore) return line;
  return line + ", through the scale's amax by " + recipe_words::MaxGradientName(estimator);
}

std::string PrecisionLine(const LinearRecipe& linear) {
  const RecipePrecision precision = PrecisionOf(linear);
  const auto gemm = [](const char* name, const GemmPrecision& p) {
    return std::string(name) + " " + PrecisionClassName(p.result) +
           (p.native_fp4 ? "" : " (not native FP4: " + p.reason + ")");
  };
  return "GEMM precision: " + gemm("fprop", precision.fprop) + "; " +
         gemm("dgrad", precision.dgrad) + "; " + gemm("wgrad", precision.wgrad);
}

// "fast" on codes, "reference" decoded.
std::string PathLine(const LinearRecipe& linear) {
  const auto path = [&](const char* name, Slot left, Slot right) {
    const Elem a = linear.Resolved(left).elem, b = linear.Resolved(right).elem;
    const char* why = WhyDecoded(linear, left, right);
    const bool high = !linear.Resolved(left).has_scale() && !linear.Resolved(right).has_scale();
    if (why == nullptr && (!CpuMultipliesCodes(a) || !CpuMultipliesCodes(b))) {
      why = "no kernel for codes of these formats";
    }
    const std::string text = std::string(name) + " ";
    if (high) return text + "fast (no codes)";
    return text + (why == nullptr ? "fast (on codes)" : "reference (" + std::string(why) + ")");
  };
  return "paths on cpu: " + path("fprop", Slot::kXf, Slot::kWf) + "; " +
         path("dgrad", Slot::kGd, Slot::kWd) + "; " + path("wgrad", Slot::kGw, Slot::kXw);
}

void AddLinear(const LinearRecipe& linear, const std::string& indent,
               std::vector<std::string>* lines) {
  for (int i = 0; i < kSlotCount; ++i) {
    lines->push_back(indent + SlotLine(linear, static_cast<Slot>(i)));
  }
  lines->push_back(indent + EstimatorLine(linear.weight_estimator));
  lines->push_back(indent + PrecisionLine(linear));
  lines->push_back(indent + PathLine(linear));
}

void AddAround(const Recipe& recipe, std::vector<std::string>* lines) {
  if (recipe.bf16_blocks_first > 0 || recipe.bf16_blocks_last > 0 || recipe.bf16_share_last > 0) {
    std::string line = StrFormat("blocks kept in BF16: first %d, last %d", recipe.bf16_blocks_first,
                                 recipe.bf16_blocks_last);
    if (recipe.bf16_share_last > 0) {
      line += StrFormat(" or %g %%, at least 1", 100 * recipe.bf16_share_last);
    }
    lines->push_back(line);
  }
  if (recipe.weight_rule.enabled) {
    const WeightRule& rule = recipe.weight_rule;
    lines->push_back(
        StrFormat("weights: from %g %% of the steps, every %d steps, those that "
                  "oscillate %g times over %d steps take their quantized value",
                  100 * rule.from_share, rule.period, rule.ratio, rule.window));
  }
  if (!(recipe.state == StatePrecision{})) {
    const auto& words = recipe_words::StateElems();
    const auto word = [&words](StateElem elem) { return words[static_cast<size_t>(elem)]; };
    lines->push_back("optimizer: first moment " + word(recipe.state.m) + ", second " +
                     word(recipe.state.v) + ", master weights " + word(recipe.state.master));
  }
  if (recipe.communication != Communication::kF32) {
    lines->push_back("gradients between workers: " +
                     recipe_words::Communications()[static_cast<size_t>(recipe.communication)]);
  }
}

}  // namespace

std::vector<std::string> DescribeRecipe(const Recipe& recipe) {
  std::vector<std::string> lines;
  AddLinear(recipe.linear, "", &lines);
  AddAround(recipe, &lines);
  for (const Override& override : recipe.overrides) {
    std::vector<std::string> kinds;
    for (int i = 0; i < kLinearKinds; ++i) {
      if ((override.kinds >> i & 1u) != 0) {
        kinds.emplace_back(LinearKindName(static_cast<LinearKind>(i)));
      }
    }
    lines.push_back(
        "layers " + StrJoin(kinds, ", ") +
        StrFormat(" of blocks %d to %d instead:", override.first_block, override.last_block));
    AddLinear(override.linear, "  ", &lines);
  }
  for (const Stage& stage : recipe.stages) {
    std::string when;
    if (stage.from_share > 0) when = StrFormat("from %g %% of the steps", 100 * stage.from_share);
    if (stage.noise_multiple > 0) {
      when += std::string(when.empty() ? "" : ", or ") +
              StrFormat("once the gradient is below %g times its quantization noise",
                        stage.noise_multiple);
    }
    lines.push_back(when + ", instead:");
    AddLinear(stage.linear, "  ", &lines);
  }
  return lines;
}

std::vector<std::string> RecipeWarnings(const Recipe& recipe, int64_t tokens, int64_t in) {
  std::vector<std::string> warnings;
  for (const Slot slot : {Slot::kXf, Slot::kXw}) {
    const Quant& quant = recipe.linear.slot(slot);
    if (quant.source == Source::kReuse || !quant.pre.enabled) continue;
    const int64_t n = quant.pre.scope == OccScope::kToken ? in : tokens * in;
    if (n < 1) continue;
    const formats::QuantileIndices index = formats::OccIndices(quant.pre.alpha, n);
    if (index.low == 0 && index.high == n - 1) {
      warnings.push_back(StrFormat(
          "%s: outlier clamping at quantile %g of %lld values clamps nothing (no-op); lower alpha "
          "or use scope tensor",
          SlotName(slot), quant.pre.alpha, static_cast<long long>(n)));
    }
  }
  for (int i = 0; i < kSlotCount; ++i) {
    const Quant& quant = recipe.linear.slots[static_cast<size_t>(i)];
    const char* name = SlotName(static_cast<Slot>(i));
    if (quant.scale == ScaleRule::kEden && quant.rotation.signs != Signs::kFresh) {
      warnings.push_back(std::string(name) +
                         ": the correction of eden is unbiased only after a rotation with fresh "
                         "signs (xform R128)");
    }
    if ((quant.round == Round::kSr24 || quant.round == Round::kTe8) &&
        (i == static_cast<int>(Slot::kXf) || i == static_cast<int>(Slot::kWf))) {
      warnings.push_back(std::string(name) +
                         ": stochastic rounding of a forward operand was seen to diverge "
                         "(arXiv 2509.25149)");
    }
  }
  if (recipe.state.v == StateElem::kE4M3) {
    warnings.emplace_back(
        "state.v: a second moment in E4M3 was seen to diverge (arXiv 2310.18313)");
  }
  if (recipe.state.master == StateElem::kE4M3) {
    warnings.emplace_back(
        "state.master: master weights in E4M3 were seen to train worse (arXiv "
        "2310.18313)");
  }
  return warnings;
}

}  // namespace nibble
