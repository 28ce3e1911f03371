// SPDX-License-Identifier: Apache-2.0
//
// Proofs: what a device must have shown before a recipe may train on it.
//
// Purpose: the self-test names what it has proved, the scheduler asks for what a recipe needs; both
// take the names from here. A device is offered for what it computed rightly, never for what it is
// called. Thread-safety: pure functions.
#pragma once

#include <string>
#include <vector>

#include "kernels/recipe/recipe.h"

namespace nibble {

// "recipe:fp4_ms_paper": every layer of a built-in recipe, forward and backward.
inline constexpr char kRecipeProof[] = "recipe:";
// AdamW with a rounded state; gradients in E4M3; the weight rule oscireset.
inline constexpr char kStateProof[] = "state.rounded";
inline constexpr char kWireProof[] = "comm.e4m3";
inline constexpr char kWeightRuleProof[] = "weight_rule";

// The different recipes of layers that training under `recipe` meets.
std::vector<LinearRecipe> LinearRecipesOf(const Recipe& recipe);

// A built-in recipe needs its own proof. One written out needs, for each kind of layer, that of a
// built-in with such layers, or where there is none those of its formats and roundings ("e2m1",
// "sr24", ...). Each name once.
std::vector<std::string> RequiredProofs(const Recipe& recipe);

}  // namespace nibble
