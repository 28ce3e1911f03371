// SPDX-License-Identifier: Apache-2.0
//
// Words: the text forms of a recipe's axes, read and written by the same tables.
//
// Purpose: "p2(448)", "R32", "1x16" and the like, for the parser, the writer and messages.
// Thread-safety: pure functions. Errors: INVALID_ARGUMENT names the field, the text and the forms
// that are known.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "kernels/recipe/recipe.h"

namespace nibble::recipe_words {

using Words = std::vector<std::string>;

// By the value of the enum.
const Words& Elems();
const Words& Rounds();
const Words& ScaleRounds();
const Words& OccScopes();
const Words& OccComps();
const Words& Outers();
const Words& Masks();
const Words& Metrics();
const Words& Sources();
const Words& LinearKinds();
const Words& StateElems();
const Words& Communications();
const Words& MaxGradients();

// Index of the text in `words`.
Result<int> Pick(const std::string& field, const Json& value, const Words& words);

// "word" or "word(a,b)" cut into word and arguments, white space off.
struct Call {
  std::string word;
  std::vector<std::string> args;
};
Result<Call> ReadCall(const std::string& field, const Json& value, const char* forms);

// The shortest decimal that reads back as the same float.
std::string FloatText(float value);

Status ReadBlock(const std::string& field, const Json& value, Quant* quant);
// Needs quant->elem for F's default. Sets what the rule implies: dly a window of 1024, eden a
// stochastic scale_round.
Status ReadScale(const std::string& field, const Json& value, Quant* quant);
// Needs quant->group for Rb.
Status ReadRotation(const std::string& field, const Json& value, Quant* quant);
Status ReadAlternatives(const std::string& field, const Json& value, Alternatives* alternatives);
Status ReadMaxGradient(const std::string& field, const Json& value, WeightEstimator* estimator);
std::string MaxGradientName(const WeightEstimator& estimator);

// What ReadScale implies when the field is left out.
int DefaultWindow(ScaleRule rule);
ScaleRound DefaultScaleRound(ScaleRule rule);

}  // namespace nibble::recipe_words
