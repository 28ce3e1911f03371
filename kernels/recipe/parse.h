// SPDX-License-Identifier: Apache-2.0
//
// Helpers that read recipe JSON; ParseRecipe is the entry (recipe.h).
// Thread-safety: pure functions. Errors: INVALID_ARGUMENT names the field and what is known.
#pragma once

#include <string>

#include "kernels/recipe/words.h"

namespace nibble::recipe_words {

// An object with no key but `known`.
Status CheckKeys(const std::string& where, const Json& json, const Words& known);
Result<double> ReadNumber(const std::string& field, const Json& value, double low, double high);
Result<int> ReadWhole(const std::string& field, const Json& value, int low, int high);

// The six slots and the estimators; a string names a built-in row.
Status ReadLinear(const std::string& where, const Json& json, LinearRecipe* linear);

}  // namespace nibble::recipe_words
