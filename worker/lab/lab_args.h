// SPDX-License-Identifier: Apache-2.0
//
// Arguments that several commands of the laboratory share: --recipe, --slot, --seed, --step.
// Thread-safe.
#pragma once

#include <string>

#include "base/status.h"
#include "kernels/linear.h"
#include "kernels/recipe/recipe.h"
#include "worker/train/args.h"

namespace nibble {

// A file (a path with a '/' or ending in .json, .yaml or .yml; "-" is standard input) or the name
// of a built-in row. The file holds a recipe in YAML or JSON, or what `nibble recipes validate FILE
// -o json` prints of one. NOT_FOUND for an unknown name, with the nearest one; INVALID_ARGUMENT or
// UNIMPLEMENTED as ParseRecipe, with the path before it.
Result<Recipe> LoadRecipe(const std::string& name_or_path);

// "Xf", "Wf", "Gd", "Wd", "Gw" or "Xw". INVALID_ARGUMENT lists them.
Result<Slot> ParseSlot(const std::string& name);

// --seed (default 1234) and --step (default 0).
Result<LinearStep> ParseLinearStep(const Args& args);

}  // namespace nibble
