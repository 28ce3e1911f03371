// SPDX-License-Identifier: Apache-2.0
//
// YAML as Json: for files whose keys are not those of a message, such as recipes.
//
// JSON is YAML, too. Plain scalars become null, true/false, numbers or text as in YAML's core
// schema; quoted ones are text. Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"
#include "kernels/recipe/recipe.h"

namespace YAML {
class Node;
}

namespace nibble {

// At most kMaxYamlValues values, aliases counted each time; INVALID_ARGUMENT otherwise and for keys
// that are given twice or are no plain names.
inline constexpr int64_t kMaxYamlValues = 100'000;
Result<Json> NodeToJson(const YAML::Node& node);
// One document. INVALID_ARGUMENT with file and line.
Result<Json> YamlToJson(std::string_view text, const std::string& file_name);

// The recipe of a document: itself, or its member `recipe`, as `nibble recipes validate FILE -o
// json` prints it. INVALID_ARGUMENT with `name` before it.
Result<Recipe> RecipeFromDocument(const Json& document, const std::string& name);

// A recipe in YAML or JSON; "-" reads standard input. NOT_FOUND without the file; INVALID_ARGUMENT
// names the file and the field or rule.
Result<Recipe> ReadRecipeFile(const std::string& path);

}  // namespace nibble
