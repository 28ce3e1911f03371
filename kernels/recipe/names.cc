// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <string>

#include "base/strings.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

const char* SlotName(Slot slot) {
  static constexpr std::array<const char*, kSlotCount> kNames = {"Xf", "Wf", "Gd",
                                                                 "Wd", "Gw", "Xw"};
  return kNames[static_cast<size_t>(slot)];
}

std::string ElemName(Elem elem) {
  switch (elem) {
    case Elem::kF32:
      return "fp32";
    case Elem::kBf16:
      return "bf16";
    case Elem::kE4M3:
      return "e4m3";
    case Elem::kE5M2:
      return "e5m2";
    case Elem::kE2M1:
      return "e2m1";
  }
  return "?";
}

std::string BlockName(Block block) {
  switch (block) {
    case Block::kTensor:
      return "tensor";
    case Block::kToken:
      return "tok";
    case Block::kOutputChannel:
      return "och";
  }
  return "?";
}

std::string ScaleName(ScaleRule rule, float scale_max) {
  const std::string max = StrFormat("%.9g", static_cast<double>(scale_max));
  switch (rule) {
    case ScaleRule::kNone:
      return "none";
    case ScaleRule::kF32:
      return "f32(" + max + ")";
    case ScaleRule::kP2:
      return "p2(" + max + ")";
    case ScaleRule::kCurrent:
      return "cur(" + max + ")";
    case ScaleRule::kCurrentP2:
      return "cur(" + max + ",p2)";
  }
  return "?";
}

std::string RoundName(Round round) {
  switch (round) {
    case Round::kEven:
      return "even";
    case Round::kHalfUp:
      return "half_up";
    case Round::kAway:
      return "away";
    case Round::kZero:
      return "zero";
    case Round::kSr24:
      return "sr24";
    case Round::kTe8:
      return "te8";
  }
  return "?";
}

int ElemBits(Elem elem) {
  switch (elem) {
    case Elem::kF32:
      return 32;
    case Elem::kBf16:
      return 16;
    case Elem::kE4M3:
    case Elem::kE5M2:
      return 8;
    case Elem::kE2M1:
      return 4;
  }
  return 32;
}

float ElemMax(Elem elem) {
  switch (elem) {
    case Elem::kE4M3:
      return 448.0f;
    case Elem::kE5M2:
      return 57344.0f;
    case Elem::kE2M1:
      return 6.0f;
    case Elem::kF32:
    case Elem::kBf16:
      break;
  }
  return 0.0f;
}

}  // namespace nibble
