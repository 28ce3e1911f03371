// SPDX-License-Identifier: Apache-2.0
//
// FieldReader and Put*: reading and writing the members of JSON objects of the durable log.
//
// Thread-safety: thread-compatible. Ownership: FieldReader borrows the Json. A missing member
// leaves the target as it is; the first wrong one is remembered in status().
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "server/core/enums.h"

namespace nibble::core {

class FieldReader {
 public:
  FieldReader(std::string_view what, const Json& json) : what_(what), json_(json) {
    if (!json.is_object()) Note(InvalidArgumentError(what_ + " is not a JSON object"));
  }

  void Get(std::string_view key, std::string& target) {
    if (const Json* value = Wanted(key, &Json::is_string)) target = value->AsString();
  }
  void Get(std::string_view key, bool& target) {
    if (const Json* value = Wanted(key, &Json::is_bool)) target = value->AsBool();
  }
  void Get(std::string_view key, int64_t& target) {
    if (const Json* value = Wanted(key, &Json::is_int)) target = value->AsInt();
  }
  void Get(std::string_view key, int& target) {
    const Json* value = Wanted(key, &Json::is_int);
    if (value == nullptr) return;
    const int64_t number = value->AsInt();
    if (number < std::numeric_limits<int>::min() || number > std::numeric_limits<int>::max()) {
      Wrong(key);
    } else {
      target = static_cast<int>(number);
    }
  }
  // Json writes values that are not finite as strings.
  void Get(std::string_view key, double& target) {
    const Json* value = json_.Find(key);
    if (value == nullptr) return;
    const std::string& text = value->AsString();
    if (value->is_number()) {
      target = value->AsDouble();
    } else if (text == "NaN") {
      target = std::numeric_limits<double>::quiet_NaN();
    } else if (text == "Infinity" || text == "-Infinity") {
      const double infinity = std::numeric_limits<double>::infinity();
      target = text[0] == '-' ? -infinity : infinity;
    } else {
      Wrong(key);
    }
  }
  void Get(std::string_view key, std::vector<std::string>& target) {
    GetEach(key, [&](const Json& item) {
      if (!item.is_string()) return Wrong(key);
      target.push_back(item.AsString());
    });
  }
  // Replaces what the target held by default.
  template <typename Int>
  void Get(std::string_view key, std::vector<Int>& target) {
    if (json_.Find(key) != nullptr) target.clear();
    GetEach(key, [&](const Json& item) {
      if (!item.is_int()) return Wrong(key);
      target.push_back(static_cast<Int>(item.AsInt()));
    });
  }
  template <typename Enum>
  void GetEnum(std::string_view key, Enum& target) {
    const Json* value = Wanted(key, &Json::is_string);
    if (value == nullptr) return;
    if (const auto known = FromName<Enum>(value->AsString())) {
      target = *known;
    } else {
      Wrong(key);
    }
  }
  void GetObject(std::string_view key, const std::function<void(FieldReader&)>& read) {
    const Json* value = Wanted(key, &Json::is_object);
    if (value == nullptr) return;
    FieldReader inner(what_ + "." + std::string(key), *value);
    read(inner);
    Note(inner.status());
  }
  void GetEach(std::string_view key, const std::function<void(const Json&)>& read) {
    const Json* value = Wanted(key, &Json::is_array);
    if (value == nullptr) return;
    for (const Json& item : value->items()) read(item);
  }
  // Hands the value on, or remembers why there is none.
  template <typename T, typename Use>
  void Take(Result<T> result, Use use) {
    if (result.ok()) {
      use(std::move(result).value());
    } else {
      Note(result.status());
    }
  }
  void Note(const Status& status) {
    if (status_.ok()) status_ = status;
  }
  const Status& status() const { return status_; }

 private:
  const Json* Wanted(std::string_view key, bool (Json::*is_type)() const) {
    const Json* value = json_.Find(key);
    if (value == nullptr) return nullptr;
    if ((value->*is_type)()) return value;
    Wrong(key);
    return nullptr;
  }
  void Wrong(std::string_view key) {
    Note(InvalidArgumentError(what_ + ": '" + std::string(key) + "' has the wrong type or value " +
                              json_[key].Dump().substr(0, 80)));
  }

  std::string what_;
  const Json& json_;
  Status status_;
};

template <typename T>
void PutUnless(Json& json, std::string_view key, const T& value, const T& fallback) {
  if (value != fallback) json.Set(key, value);
}

inline void PutStrings(Json& json, std::string_view key, const std::vector<std::string>& values) {
  if (values.empty()) return;
  Json array = Json::Array();
  for (const std::string& value : values) array.Append(value);
  json.Set(key, std::move(array));
}

}  // namespace nibble::core
