// SPDX-License-Identifier: Apache-2.0
#include "client/lib/proto_json.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/timestamp.pb.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <vector>

#include "base/strings.h"
#include "client/lib/quantities.h"

namespace nibble {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr char kStatePrefix[] = "JOB_STATE_";

// JOB_STATE_RUNNING of enum JobState becomes RUNNING.
std::string EnumText(const EnumValueDescriptor& value) {
  std::string prefix;
  for (const char c : value.type()->name()) {
    if (std::isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix += '_';
    prefix += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  prefix += '_';
  const std::string& name = value.name();
  return name.starts_with(prefix) ? name.substr(prefix.size()) : name;
}

Json Convert(const Message& message, bool set_only);

Json ConvertMessage(const Message& message, bool set_only) {
  const std::string& type = message.GetDescriptor()->full_name();
  if (type == "google.protobuf.Timestamp") {
    google::protobuf::Timestamp time;
    time.CopyFrom(message);
    return FormatUtc(time.seconds() * 1000 + time.nanos() / 1'000'000);
  }
  if (type == "google.protobuf.Duration") {
    google::protobuf::Duration duration;
    duration.CopyFrom(message);
    return WriteDuration(static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9);
  }
  return Convert(message, set_only || type == v1::JobSpec::descriptor()->full_name());
}

// Element `index` of a repeated field, or the field itself when index < 0.
Json ConvertValue(const Message& message, const FieldDescriptor& field, int index, bool set_only) {
  const Reflection& r = *message.GetReflection();
  const bool one = index < 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return one ? r.GetInt32(message, &field) : r.GetRepeatedInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_INT64:
      return one ? r.GetInt64(message, &field) : r.GetRepeatedInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT32:
      return one ? r.GetUInt32(message, &field) : r.GetRepeatedUInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT64:
      return one ? r.GetUInt64(message, &field) : r.GetRepeatedUInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return one ? r.GetDouble(message, &field) : r.GetRepeatedDouble(message, &field, index);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return one ? r.GetFloat(message, &field) : r.GetRepeatedFloat(message, &field, index);
    case FieldDescriptor::CPPTYPE_BOOL:
      return one ? r.GetBool(message, &field) : r.GetRepeatedBool(message, &field, index);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumText(one ? *r.GetEnum(message, &field)
                          : *r.GetRepeatedEnum(message, &field, index));
    case FieldDescriptor::CPPTYPE_STRING:
      return one ? r.GetString(message, &field) : r.GetRepeatedString(message, &field, index);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ConvertMessage(
          one ? r.GetMessage(message, &field) : r.GetRepeatedMessage(message, &field, index),
          set_only);
  }
  return {};
}

// Map entries in the order of their keys, so that output is stable.
Json ConvertMap(const Message& message, const FieldDescriptor& field, bool set_only) {
  std::map<std::string, Json> sorted;
  const Reflection& r = *message.GetReflection();
  for (int i = 0; i < r.FieldSize(message, &field); ++i) {
    const Message& entry = r.GetRepeatedMessage(message, &field, i);
    const Json key = ConvertValue(entry, *field.message_type()->map_key(), -1, set_only);
    sorted[key.is_string() ? key.AsString() : key.Dump()] =
        ConvertValue(entry, *field.message_type()->map_value(), -1, set_only);
  }
  return Json::ObjectOf({sorted.begin(), sorted.end()});
}

Json Convert(const Message& message, bool set_only) {
  const Descriptor& descriptor = *message.GetDescriptor();
  const Reflection& r = *message.GetReflection();
  Json json = Json::Object();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    if (field.is_repeated()) {
      const int size = r.FieldSize(message, &field);
      if (size == 0 && set_only) continue;
      if (field.is_map()) {
        json.Set(field.json_name(), ConvertMap(message, field, set_only));
        continue;
      }
      Json items = Json::Array();
      for (int k = 0; k < size; ++k) items.Append(ConvertValue(message, field, k, set_only));
      json.Set(field.json_name(), std::move(items));
    } else if (r.HasField(message, &field) || (!set_only && !field.has_presence())) {
      json.Set(field.json_name(), ConvertValue(message, field, -1, set_only));
    }
  }
  return json;
}

// True when plain YAML would read the text as another text or type.
bool NeedsQuotes(const std::string& text) {
  if (text.empty() || ParseDouble(text).ok() || text.front() == ' ' || text.back() == ' ') {
    return true;
  }
  static const char* kWords[] = {"true",  "false", "null", "yes", "no",  "on",  "off",  "True",
                                 "False", "Null",  "Yes",  "No",  "On",  "Off", "TRUE", "FALSE",
                                 "NULL",  "YES",   "NO",   "ON",  "OFF", "~",   "-"};
  for (const char* word : kWords) {
    if (text == word) return true;
  }
  if (text.find(": ") != std::string::npos || text.find(" #") != std::string::npos ||
      text.back() == ':') {
    return true;
  }
  if (std::string_view("-?:,[]{}#&*!|>'\"%@` .+").find(text.front()) != std::string_view::npos) {
    return true;
  }
  return std::any_of(text.begin(), text.end(),
                     [](unsigned char c) { return c < 0x20 || c > 0x7e; });
}

std::string YamlScalar(const Json& json) {
  if (json.is_array()) return "[]";
  if (json.is_object()) return "{}";
  if (json.is_string()) return NeedsQuotes(json.AsString()) ? json.Dump() : json.AsString();
  return json.Dump();
}

bool IsBlock(const Json& json) { return (json.is_array() || json.is_object()) && json.size() > 0; }

// Writes a non-empty array or object; the first line starts where the cursor is when
// `inline_first`.
void WriteYaml(const Json& json, int indent, bool inline_first, std::string& out) {
  bool first = true;
  const auto start_line = [&] {
    if (!(first && inline_first)) out += std::string(static_cast<size_t>(indent), ' ');
    first = false;
  };
  if (json.is_array()) {
    for (const Json& item : json.items()) {
      start_line();
      out += "- ";
      if (IsBlock(item)) {
        WriteYaml(item, indent + 2, true, out);
      } else {
        out += YamlScalar(item) + "\n";
      }
    }
    return;
  }
  for (const auto& [key, value] : json.members()) {
    start_line();
    out += (NeedsQuotes(key) ? JsonQuote(key) : key) + ":";
    if (!IsBlock(value)) {
      out += " " + YamlScalar(value) + "\n";
    } else {
      out += "\n";
      WriteYaml(value, indent + 2, false, out);
    }
  }
}

}  // namespace

Json MessageToJson(const Message& message) { return ConvertMessage(message, false); }

std::string JsonToYaml(const Json& json) {
  if (!IsBlock(json)) return YamlScalar(json) + "\n";
  std::string out;
  WriteYaml(json, 0, false, out);
  return out;
}

std::string JobStateName(v1::JobState state) {
  const auto* value = v1::JobState_descriptor()->FindValueByNumber(state);
  return value == nullptr ? StrFormat("UNKNOWN(%d)", static_cast<int>(state)) : EnumText(*value);
}

bool IsTerminal(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_SUCCEEDED:
    case v1::JOB_STATE_FAILED:
    case v1::JOB_STATE_CANCELLED:
    case v1::JOB_STATE_TIMED_OUT:
    case v1::JOB_STATE_REJECTED:
      return true;
    default:
      return false;
  }
}

Result<v1::JobState> ParseJobState(const std::string& name) {
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  v1::JobState state;
  if (v1::JobState_Parse(kStatePrefix + upper, &state) && state != v1::JOB_STATE_UNSPECIFIED) {
    return state;
  }
  std::vector<std::string> known;
  const auto& descriptor = *v1::JobState_descriptor();
  for (int i = 1; i < descriptor.value_count(); ++i) {
    known.push_back(EnumText(*descriptor.value(i)));
  }
  return InvalidArgumentError(UnknownNameMessage("job state", upper, known));
}

}  // namespace nibble
