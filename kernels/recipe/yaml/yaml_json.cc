// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/yaml/yaml_json.h"

#include <yaml-cpp/yaml.h>

#include <cmath>
#include <iostream>
#include <iterator>
#include <vector>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

constexpr int64_t kMaxRecipeBytes = 1 << 20;

Status At(const YAML::Node& node, const std::string& problem) {
  return InvalidArgumentError(StrFormat("line %d: ", node.Mark().line + 1) + problem);
}

Json ScalarToJson(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return Json(text);  // quoted
  if (text == "true" || text == "false") return Json(text == "true");
  if (text.empty() || text == "null" || text == "~") return Json();
  if (const Result<int64_t> whole = ParseInt(text); whole.ok()) return Json(*whole);
  const std::string full = text[0] == '.' ? "0" + text : text;
  const Result<double> number = ParseDouble(full);
  if (number.ok() && std::isfinite(*number)) return Json(*number);
  return Json(text);
}

Result<Json> Convert(const YAML::Node& node, int depth, int64_t* left) {
  if (--*left < 0) {
    return At(node, StrFormat("more than %lld values", static_cast<long long>(kMaxYamlValues)));
  }
  if (depth > kJsonMaxDepth) return At(node, StrFormat("nested deeper than %d", kJsonMaxDepth));
  if (node.IsSequence()) {
    Json list = Json::Array();
    for (const YAML::Node& item : node) {
      ASSIGN_OR_RETURN(Json value, Convert(item, depth + 1, left));
      list.Append(std::move(value));
    }
    return list;
  }
  if (!node.IsMap()) return node.IsScalar() ? ScalarToJson(node) : Json();
  Json object = Json::Object();
  for (const auto& pair : node) {
    if (!pair.first.IsScalar()) return At(pair.first, "keys are plain names");
    const std::string& key = pair.first.Scalar();
    if (object.Find(key) != nullptr) return At(pair.first, "key '" + key + "' is given twice");
    ASSIGN_OR_RETURN(Json value, Convert(pair.second, depth + 1, left));
    object.Set(key, std::move(value));
  }
  return object;
}

}  // namespace

Result<Json> NodeToJson(const YAML::Node& node) {
  int64_t left = kMaxYamlValues;
  return Convert(node, 0, &left);
}

Result<Json> YamlToJson(std::string_view text, const std::string& file_name) {
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
    if (documents.size() != 1) {
      return InvalidArgumentError(
          StrFormat("%s: %zu documents; expected one", file_name.c_str(), documents.size()));
    }
    Result<Json> json = NodeToJson(documents[0]);
    if (!json.ok()) return json.status().WithContext(file_name);
    return json;
  } catch (const YAML::Exception& error) {
    return InvalidArgumentError(StrFormat("%s:%d:%d: not valid YAML: %s", file_name.c_str(),
                                          error.mark.line + 1, error.mark.column + 1,
                                          error.msg.c_str()));
  }
}

Result<Recipe> ReadRecipeFile(const std::string& path) {
  std::string text;
  if (path == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  } else {
    ASSIGN_OR_RETURN(text, ReadFile(path, kMaxRecipeBytes));
  }
  const std::string name = path == "-" ? "stdin" : path;
  ASSIGN_OR_RETURN(const Json json, YamlToJson(text, name));
  return RecipeFromDocument(json, name);
}

}  // namespace nibble
