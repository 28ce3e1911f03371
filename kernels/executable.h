// SPDX-License-Identifier: Apache-2.0
//
// Which recipe axes the layers execute.
//
// Purpose: a recipe is data and may describe more than the kernels compute. This is the one list of
// what they do not; Backend::Quantize and PathsOf ask it, so nothing is rounded in another way than
// the recipe says. Thread-safety: pure functions.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// UNIMPLEMENTED names the first value of the slot that has no kernel. A slot with source reuse is
// always fine.
Status CheckExecutable(const Quant& quant);
// The slots and the estimator, the slot's name in front.
Status CheckExecutable(const LinearRecipe& linear);
// Every linear part, and what surrounds them: overrides, stages, weight rule, optimizer state,
// gradient communication.
Status CheckExecutable(const Recipe& recipe);
// The built-in rows that execute, in order.
std::vector<std::string> ExecutableRecipeNames();

}  // namespace nibble
