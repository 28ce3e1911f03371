// SPDX-License-Identifier: Apache-2.0
//
// Json: a small JSON value, strict parser (RFC 8259) and writer.
//
// Purpose: run configs, journals, recipes, safetensors headers, manifests and CLI output share one
// JSON. It is ours because base/ and the trainer are std only. Objects keep insertion order, so
// output is deterministic. Numbers keep 64-bit integers exact.
// Thread-safety: value type, thread-compatible. Limits: kJsonMaxDepth levels of nesting.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble {

inline constexpr int kJsonMaxDepth = 64;

class Json {
 public:
  enum class Type { kNull, kBool, kInt, kDouble, kString, kArray, kObject };
  using Member = std::pair<std::string, Json>;

  Json() = default;                                          // null
  Json(bool value) : type_(Type::kBool), int_(value) {}      // NOLINT
  Json(int value) : type_(Type::kInt), int_(value) {}        // NOLINT
  Json(unsigned value) : type_(Type::kInt), int_(value) {}   // NOLINT
  Json(long value) : type_(Type::kInt), int_(value) {}       // NOLINT
  Json(long long value) : type_(Type::kInt), int_(value) {}  // NOLINT
  Json(unsigned long value);  // NOLINT: above INT64_MAX becomes a double
  Json(unsigned long long value) : Json(static_cast<unsigned long>(value)) {}   // NOLINT
  Json(double value) : type_(Type::kDouble), double_(value) {}                  // NOLINT
  Json(float value) : Json(static_cast<double>(value)) {}                       // NOLINT
  Json(std::string value) : type_(Type::kString), string_(std::move(value)) {}  // NOLINT
  Json(std::string_view value) : Json(std::string(value)) {}                    // NOLINT
  Json(const char* value) : Json(std::string(value)) {}                         // NOLINT

  static Json Array() { return OfType(Type::kArray); }
  static Json Object() { return OfType(Type::kObject); }
  static Json Array(std::initializer_list<Json> items);
  static Json Object(std::initializer_list<Member> members);
  // Precondition: the keys differ. In linear time, unlike a Set for each member.
  static Json ObjectOf(std::vector<Member> members);

  // Parses exactly one value with nothing but white space around it.
  // INVALID_ARGUMENT with line and column otherwise. Duplicate keys are refused.
  static Result<Json> Parse(std::string_view text);

  Type type() const { return type_; }
  bool is_null() const { return type_ == Type::kNull; }
  bool is_bool() const { return type_ == Type::kBool; }
  bool is_int() const { return type_ == Type::kInt; }
  bool is_number() const { return type_ == Type::kInt || type_ == Type::kDouble; }
  bool is_string() const { return type_ == Type::kString; }
  bool is_array() const { return type_ == Type::kArray; }
  bool is_object() const { return type_ == Type::kObject; }

  // Reads with a fallback for another type; never fail.
  bool AsBool(bool fallback = false) const { return is_bool() ? int_ != 0 : fallback; }
  int64_t AsInt(int64_t fallback = 0) const;  // a double is truncated when it fits
  double AsDouble(double fallback = 0) const;
  const std::string& AsString() const { return string_; }  // "" for another type

  // Arrays. Precondition of At: index < size().
  const std::vector<Json>& items() const { return items_; }
  size_t size() const { return is_object() ? members_.size() : items_.size(); }
  const Json& At(size_t index) const { return items_[index]; }
  Json& Append(Json value);  // makes a null an array

  // Objects. Missing keys read as null.
  const std::vector<Member>& members() const { return members_; }
  const Json* Find(std::string_view key) const;  // nullptr when absent; borrowed
  const Json& operator[](std::string_view key) const;
  const Json& operator[](const char* key) const { return (*this)[std::string_view(key)]; }
  Json& Set(std::string_view key, Json value);  // makes a null an object; replaces; returns *this

  // Compact text, or pretty with `indent` spaces. Doubles print with the fewest digits that read
  // back equal; NaN and infinities print as the strings "NaN", "Infinity", "-Infinity".
  std::string Dump(int indent = -1) const;

 private:
  static Json OfType(Type type) {
    Json json;
    json.type_ = type;
    return json;
  }
  void DumpTo(std::string& out, int indent, int depth) const;

  Type type_ = Type::kNull;
  int64_t int_ = 0;
  double double_ = 0;
  std::string string_;
  std::vector<Json> items_;
  std::vector<Member> members_;
};

// The text as a quoted JSON string. Bytes that are not valid UTF-8 become U+FFFD.
std::string JsonQuote(std::string_view text);

}  // namespace nibble
