// SPDX-License-Identifier: Apache-2.0
//
// The word of every enum value, in the order of the enums.
#include <array>
#include <string>

#include "base/strings.h"
#include "kernels/recipe/words.h"

namespace nibble {
namespace {

struct ElemRow {
  int bits;
  float max;
};
// By Elem.
constexpr std::array<ElemRow, 10> kElems = {{{32, 0.0f},
                                             {16, 0.0f},
                                             {8, 448.0f},
                                             {8, 57344.0f},
                                             {4, 6.0f},
                                             {4, 3.5f},
                                             {4, 16.0f},
                                             {4, 7.5f},
                                             {4, 7.0f},
                                             {8, 127.0f}}};

}  // namespace

namespace recipe_words {

const Words& Elems() {
  static const Words words = {"fp32", "bf16", "e4m3",  "e5m2", "e2m1",
                              "e1m2", "e3m0", "int4c", "int4", "int8"};
  return words;
}
const Words& Rounds() {
  static const Words words = {"even", "half_up", "away", "zero", "sr24", "te8"};
  return words;
}
const Words& ScaleRounds() {
  static const Words words = {"even", "up", "sr"};
  return words;
}
const Words& OccScopes() {
  static const Words words = {"tensor", "token"};
  return words;
}
const Words& OccComps() {
  static const Words words = {"none", "e4m3", "bf16", "wide", "wide_e4m3"};
  return words;
}
const Words& Outers() {
  static const Words words = {"tensor", "1x128"};
  return words;
}
const Words& Masks() {
  static const Words words = {"none", "lt6", "trust"};
  return words;
}
const Words& Metrics() {
  static const Words words = {"mse", "mae", "max"};
  return words;
}
const Words& Sources() {
  static const Words words = {"hp", "reuse", "requant"};
  return words;
}
const Words& LinearKinds() {
  static const Words words = {"q", "k", "v", "o", "gate", "up", "down"};
  return words;
}
const Words& StateElems() {
  static const Words words = {"fp32", "fp16", "bf16", "e4m3", "bf16_sr"};
  return words;
}
// "presum": rounded before the sum, which then runs in FP32.
const Words& Communications() {
  static const Words words = {"fp32", "bf16", "e4m3_presum"};
  return words;
}
const Words& MaxGradients() {
  static const Words words = {"ignore", "absmax", "softmax", "softmax_backward"};
  return words;
}

}  // namespace recipe_words

const char* SlotName(Slot slot) {
  static constexpr std::array<const char*, kSlotCount> kNames = {"Xf", "Wf", "Gd",
                                                                 "Wd", "Gw", "Xw"};
  return kNames[static_cast<size_t>(slot)];
}

const char* LinearKindName(LinearKind kind) {
  return recipe_words::LinearKinds()[static_cast<size_t>(kind)].c_str();
}

std::string ElemName(Elem elem) { return recipe_words::Elems()[static_cast<size_t>(elem)]; }
int ElemBits(Elem elem) { return kElems[static_cast<size_t>(elem)].bits; }
float ElemMax(Elem elem) { return kElems[static_cast<size_t>(elem)].max; }
std::string RoundName(Round round) { return recipe_words::Rounds()[static_cast<size_t>(round)]; }

}  // namespace nibble
