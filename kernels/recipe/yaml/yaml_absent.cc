// SPDX-License-Identifier: Apache-2.0
//
// In place of yaml_json.cc where yaml-cpp is not installed: JSON only.
#include "base/files.h"
#include "kernels/recipe/yaml/yaml_json.h"

namespace nibble {

Result<Json> YamlToJson(std::string_view text, const std::string& file_name) {
  Result<Json> json = Json::Parse(text);
  if (json.ok()) return json;
  return json.status().WithContext(file_name + " (this build has no yaml-cpp and reads JSON only)");
}

Result<Recipe> ReadRecipeFile(const std::string& path) {
  constexpr int64_t kMaxRecipeBytes = 1 << 20;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxRecipeBytes));
  ASSIGN_OR_RETURN(const Json json, YamlToJson(text, path));
  return RecipeFromDocument(json, path);
}

}  // namespace nibble
