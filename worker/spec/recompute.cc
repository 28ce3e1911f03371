// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/recompute.h"

#include "base/strings.h"

namespace nibble {
namespace {

struct Choice {
  const char* name;
  bool Recompute::*member;
};
constexpr Choice kChoices[] = {{"swiglu", &Recompute::swiglu},
                               {"norm", &Recompute::norm},
                               {"ffn", &Recompute::ffn},
                               {"attention", &Recompute::attention},
                               {"block", &Recompute::block}};

}  // namespace

Result<Recompute> ParseRecompute(const std::string& text) {
  Recompute recompute;
  if (text.empty() || text == "none") return recompute;
  for (const std::string& word : StrSplit(text, '+')) {
    const Choice* found = nullptr;
    for (const Choice& choice : kChoices) {
      if (word == choice.name) found = &choice;
    }
    if (found == nullptr) {
      return InvalidArgumentError("is \"" + text +
                                  "\"; expected none, swiglu, norm, ffn, attention or block, or "
                                  "several joined by +");
    }
    recompute.*found->member = true;
  }
  return recompute;
}

std::string RecomputeText(const Recompute& recompute) {
  std::vector<std::string> words;
  for (const Choice& choice : kChoices) {
    if (recompute.*choice.member) words.emplace_back(choice.name);
  }
  return words.empty() ? "none" : StrJoin(words, "+");
}

}  // namespace nibble
