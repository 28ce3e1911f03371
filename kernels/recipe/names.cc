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

namespace {

struct ElemRow {
  const char* name;
  int bits;
  float max;
};
// By Elem.
constexpr std::array<ElemRow, 10> kElems = {{{"fp32", 32, 0.0f},
                                             {"bf16", 16, 0.0f},
                                             {"e4m3", 8, 448.0f},
                                             {"e5m2", 8, 57344.0f},
                                             {"e2m1", 4, 6.0f},
                                             {"e1m2", 4, 3.5f},
                                             {"e3m0", 4, 16.0f},
                                             {"int4c", 4, 7.5f},
                                             {"int4", 4, 7.0f},
                                             {"int8", 8, 127.0f}}};
const ElemRow& RowOf(Elem elem) { return kElems[static_cast<size_t>(elem)]; }

}  // namespace

std::string ElemName(Elem elem) { return RowOf(elem).name; }
int ElemBits(Elem elem) { return RowOf(elem).bits; }
float ElemMax(Elem elem) { return RowOf(elem).max; }

std::string BlockName(Block block) {
  static constexpr std::array<const char*, 6> kNames = {"tensor", "tok", "och",
                                                        "ich",    "1xB", "BxB"};
  return kNames[static_cast<size_t>(block)];
}

std::string ScaleName(ScaleRule rule, float scale_max) {
  static constexpr std::array<const char*, 14> kNames = {"none", "f32", "p2",   "cur",  "cur",
                                                         "dly",  "e8f", "e8u",  "nv",   "u53",
                                                         "qst",  "a34", "eden", "quest"};
  if (rule == ScaleRule::kNone) return "none";
  return StrFormat("%s(%.9g%s)", kNames[static_cast<size_t>(rule)], static_cast<double>(scale_max),
                   rule == ScaleRule::kCurrentP2 ? ",p2" : "");
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

}  // namespace nibble
