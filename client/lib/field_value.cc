// SPDX-License-Identifier: Apache-2.0
#include "client/lib/field_value.h"

#include <google/protobuf/duration.pb.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/strings.h"
#include "client/lib/quantities.h"

namespace nibble {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr char kDurationName[] = "google.protobuf.Duration";
// What google.protobuf.Duration allows: about 10,000 years.
constexpr double kMaxDurationSeconds = 315'576'000'000.0;

bool IsDuration(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
         field.message_type()->full_name() == kDurationName;
}

bool IsByteCount(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 && field.name().ends_with("_bytes");
}

Status Expected(const FieldDescriptor& field, const std::string& text, bool quoted) {
  std::string message = "expects " + ExpectedForm(field) + ", got '" + text + "'";
  if (quoted) message += " in quotes";
  return InvalidArgumentError(message);
}

Status OutsideRange(const std::string& text, int64_t low, int64_t high) {
  return InvalidArgumentError(StrFormat("%s is outside %lld..%lld", text.c_str(),
                                        static_cast<long long>(low), static_cast<long long>(high)));
}

// Set for single fields and Add for repeated ones, as one name.
#define NIBBLE_PUT(Type, value)                                         \
  (field.is_repeated() ? reflection.Add##Type(message, &field, (value)) \
                       : reflection.Set##Type(message, &field, (value)))

Status SetInteger(const FieldDescriptor& field, const std::string& text, bool quoted,
                  Message* message) {
  const Reflection& reflection = *message->GetReflection();
  const bool bytes = IsByteCount(field);
  if (quoted && !bytes) return Expected(field, text, quoted);
  const Result<int64_t> parsed = bytes ? ParseBytes(text) : ParseWholeNumber(text);
  if (!parsed.ok()) {
    if (parsed.status().code() == StatusCode::kOutOfRange) {
      return InvalidArgumentError(text + " is outside the 64-bit range");
    }
    return Expected(field, text, quoted);
  }
  const int64_t value = *parsed;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      constexpr int64_t kLow = std::numeric_limits<int32_t>::min();
      constexpr int64_t kHigh = std::numeric_limits<int32_t>::max();
      if (value < kLow || value > kHigh) return OutsideRange(text, kLow, kHigh);
      NIBBLE_PUT(Int32, static_cast<int32_t>(value));
      return OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      constexpr int64_t kHigh = std::numeric_limits<uint32_t>::max();
      if (value < 0 || value > kHigh) return OutsideRange(text, 0, kHigh);
      NIBBLE_PUT(UInt32, static_cast<uint32_t>(value));
      return OkStatus();
    }
    default:
      NIBBLE_PUT(Int64, value);
      return OkStatus();
  }
}

Status SetDuration(const FieldDescriptor& field, const std::string& text, Message* message) {
  const auto seconds = ParseDurationSeconds(text);
  if (!seconds.ok()) return Expected(field, text, false);
  if (*seconds > kMaxDurationSeconds) {
    return InvalidArgumentError("'" + text + "' is longer than 10000 years");
  }
  const Reflection& reflection = *message->GetReflection();
  Message* target = field.is_repeated() ? reflection.AddMessage(message, &field)
                                        : reflection.MutableMessage(message, &field);
  google::protobuf::Duration duration;
  const double whole = std::floor(*seconds);
  duration.set_seconds(static_cast<int64_t>(whole));
  duration.set_nanos(static_cast<int32_t>((*seconds - whole) * 1e9));
  target->CopyFrom(duration);
  return OkStatus();
}

Status SetEnum(const FieldDescriptor& field, const std::string& text, Message* message) {
  const Reflection& reflection = *message->GetReflection();
  const auto* value = field.enum_type()->FindValueByName(text);
  if (value == nullptr) {
    std::vector<std::string> names;
    for (int i = 0; i < field.enum_type()->value_count(); ++i) {
      names.push_back(field.enum_type()->value(i)->name());
    }
    return InvalidArgumentError(UnknownNameMessage("value", text, names));
  }
  NIBBLE_PUT(EnumValue, value->number());
  return OkStatus();
}

}  // namespace

bool TakesText(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_BOOL:
    case FieldDescriptor::CPPTYPE_ENUM:
    case FieldDescriptor::CPPTYPE_STRING:
      return true;
    default:
      return IsDuration(field);
  }
}

std::string ExpectedForm(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT32:
      return IsByteCount(field) ? "a size such as 4GiB" : "a whole number";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a number";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return "one of its names";
    case FieldDescriptor::CPPTYPE_STRING:
      return "a text";
    default:
      return IsDuration(field) ? "a duration such as 90s, 90m, 1h30m or D-HH:MM:SS"
                               : "a section of keys";
  }
}

Status SetFieldFromText(const FieldDescriptor& field, const std::string& text, bool quoted,
                        Message* message) {
  const Reflection& reflection = *message->GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      NIBBLE_PUT(String, text);
      return OkStatus();
    case FieldDescriptor::CPPTYPE_BOOL:
      if (quoted || (text != "true" && text != "false")) return Expected(field, text, quoted);
      NIBBLE_PUT(Bool, text == "true");
      return OkStatus();
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const auto value = ParseDouble(text);
      if (quoted || !value.ok()) return Expected(field, text, quoted);
      if (!std::isfinite(*value)) return InvalidArgumentError("'" + text + "' is not finite");
      NIBBLE_PUT(Double, *value);
      return OkStatus();
    }
    case FieldDescriptor::CPPTYPE_ENUM:
      return SetEnum(field, text, message);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return SetDuration(field, text, message);
    default:
      return SetInteger(field, text, quoted, message);
  }
}

#undef NIBBLE_PUT

}  // namespace nibble
