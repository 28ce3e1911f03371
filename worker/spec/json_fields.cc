// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/json_fields.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/strings.h"

namespace nibble {

JsonFields::JsonFields(const Json& object, std::string path, std::vector<FieldError>& errors)
    : object_(object), path_(std::move(path)), errors_(errors) {
  if (!object.is_object() && !object.is_null()) {
    errors_.push_back({path_, "is not a mapping; write its keys below it"});
  }
}

void JsonFields::Error(const std::string& key, std::string description) {
  errors_.push_back({path_.empty() ? key : path_ + "." + key, std::move(description)});
}

const Json* JsonFields::Take(const char* key) {
  known_.push_back(key);
  const Json* value = object_.Find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const Json& JsonFields::Section(const char* key) {
  known_.push_back(key);
  return object_[key];
}

void JsonFields::Read(const char* key, std::string& out) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  if (!value->is_string()) return Error(key, "is " + value->Dump() + ", expected text");
  out = value->AsString();
}

void JsonFields::Read(const char* key, bool& out) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  if (!value->is_bool()) return Error(key, "is " + value->Dump() + ", expected true or false");
  out = value->AsBool();
}

void JsonFields::Read(const char* key, std::vector<std::string>& out) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  std::vector<std::string> texts;
  for (const Json& item : value->items()) {
    if (!item.is_string()) break;
    texts.push_back(item.AsString());
  }
  if (!value->is_array() || texts.size() != value->items().size()) {
    return Error(key, "is " + value->Dump() + ", expected a list of texts");
  }
  out = std::move(texts);
}

void JsonFields::ReadInt(const char* key, int64_t& out, int64_t min, int64_t max) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  Result<int64_t> number = value->is_string() ? ParseInt(value->AsString()) : value->AsInt();
  const bool integral = value->is_int() || value->is_string() ||
                        (value->is_number() && std::abs(value->AsDouble()) < 9e15 &&
                         value->AsDouble() == std::floor(value->AsDouble()));
  if (!number.ok() || !integral) {
    return Error(key, "is " + value->Dump() + ", expected a whole number");
  }
  if (*number < min || *number > max) {
    return Error(key, StrFormat("is %lld, allowed is %lld to %lld", static_cast<long long>(*number),
                                static_cast<long long>(min), static_cast<long long>(max)));
  }
  out = *number;
}

void JsonFields::ReadReal(const char* key, double& out, double min, double max) {
  const Json* value = Take(key);
  if (value == nullptr) return;
  const double number = value->AsDouble(std::nan(""));
  if (std::isnan(number)) return Error(key, "is " + value->Dump() + ", expected a number");
  if (number < min || number > max) {
    return Error(key, StrFormat("is %g, allowed is %g to %g", number, min, max));
  }
  out = number;
}

void JsonFields::Finish() {
  for (const Json::Member& member : object_.members()) {
    if (std::find(known_.begin(), known_.end(), member.first) != known_.end()) continue;
    const std::string nearest = NearestName(member.first, known_);
    Error(member.first,
          "is not a known key" + (nearest.empty() ? "; known: " + StrJoin(known_, ", ")
                                                  : "; did you mean '" + nearest + "'?"));
  }
}

}  // namespace nibble
