// SPDX-License-Identifier: Apache-2.0
#include "worker/study/json_patch.h"

#include <string>
#include <utility>
#include <vector>

namespace nibble {
namespace {

Json Without(const Json& object, std::string_view key) {
  std::vector<Json::Member> members;
  for (const Json::Member& member : object.members()) {
    if (member.first != key) members.push_back(member);
  }
  return Json::ObjectOf(std::move(members));
}

}  // namespace

Json MergePatch(const Json& target, const Json& patch) {
  if (!patch.is_object()) return patch;
  Json merged = target.is_object() ? target : Json::Object();
  for (const Json::Member& member : patch.members()) {
    if (member.second.is_null()) {
      merged = Without(merged, member.first);
    } else {
      merged.Set(member.first, MergePatch(merged[member.first], member.second));
    }
  }
  return merged;
}

Status SetPath(Json* target, std::string_view path, const Json& value) {
  if (!target->is_object() && !target->is_null()) {
    return InvalidArgumentError("path '" + std::string(path) + "' lies below " + target->Dump() +
                                ", which is no object");
  }
  const size_t dot = path.find('.');
  const std::string_view key = path.substr(0, dot);
  if (key.empty()) {
    return InvalidArgumentError("path '" + std::string(path) +
                                "' has an empty part; write linear.Xf.round");
  }
  if (dot == std::string_view::npos) {
    *target = value.is_null() ? Without(*target, key) : target->Set(key, value);
    return OkStatus();
  }
  Json child = (*target)[key];
  RETURN_IF_ERROR(SetPath(&child, path.substr(dot + 1), value));
  target->Set(key, std::move(child));
  return OkStatus();
}

}  // namespace nibble
