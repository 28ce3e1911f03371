// SPDX-License-Identifier: Apache-2.0
#include "client/lib/job_yaml.h"

#include <yaml-cpp/yaml.h>

#include <iostream>
#include <iterator>
#include <set>
#include <utility>

#include "base/files.h"
#include "base/strings.h"
#include "client/lib/field_value.h"
#include "kernels/recipe/yaml/yaml_json.h"

namespace nibble {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::vector<std::string> KnownKeys(const Descriptor& descriptor) {
  std::vector<std::string> keys;
  for (int i = 0; i < descriptor.field_count(); ++i) {
    keys.push_back(descriptor.field(i)->json_name());
  }
  return keys;
}

const FieldDescriptor* FindKey(const Descriptor& descriptor, const std::string& key) {
  for (int i = 0; i < descriptor.field_count(); ++i) {
    if (descriptor.field(i)->json_name() == key) return descriptor.field(i);
  }
  return nullptr;
}

std::string UnknownKey(const Descriptor& descriptor, const std::string& key) {
  const std::vector<std::string> known = KnownKeys(descriptor);
  const std::string nearest = NearestName(key, known);
  return "unknown key '" + key + "'; " +
         (nearest.empty() ? "known here: " + StrJoin(known, ", ")
                          : "did you mean '" + nearest + "'?");
}

const char* Shape(const YAML::Node& node) {
  if (node.IsMap()) return "a section of keys";
  if (node.IsSequence()) return "a list";
  return "a single value";
}

// Walks YAML nodes along message descriptors and collects every problem.
class Mapper {
 public:
  explicit Mapper(std::string file_name) : file_name_(std::move(file_name)) {}

  void MapMessage(const YAML::Node& node, const std::string& path, Message* message) {
    if (!node.IsMap()) {
      Report(node, path, std::string("expects a section of keys, got ") + Shape(node));
      return;
    }
    std::set<std::string> seen;
    for (const auto& pair : node) {
      const std::string key = KeyOf(pair.first, path);
      if (key.empty()) continue;
      const std::string key_path = path.empty() ? key : path + "." + key;
      if (!seen.insert(key).second) {
        Report(pair.first, "", "key '" + key_path + "' is given twice; keep one");
        continue;
      }
      const FieldDescriptor* field = FindKey(*message->GetDescriptor(), key);
      if (field == nullptr) {
        Report(pair.first, path, UnknownKey(*message->GetDescriptor(), key));
        continue;
      }
      lines_[key_path] = pair.first.Mark().line + 1;
      MapField(pair.second, key_path, *field, message);
    }
  }

  // An empty value ("key:") leaves the default.
  void MapField(const YAML::Node& node, const std::string& path, const FieldDescriptor& field,
                Message* message) {
    if (node.IsNull()) return;
    if (node.IsMap() && field.full_name() == "nibble.v1.PrecisionSpec.recipe") {
      MapRecipe(node, path, static_cast<v1::PrecisionSpec*>(message));
      return;
    }
    if (field.is_map()) {
      MapMap(node, path, field, message);
    } else if (field.is_repeated()) {
      if (!node.IsSequence()) {
        Report(node, path, std::string("expects a list, got ") + Shape(node) + "; write [a, b]");
        return;
      }
      int index = 0;
      for (const YAML::Node& item : node) {
        MapScalar(item, StrFormat("%s[%d]", path.c_str(), index++), field, message);
      }
    } else if (TakesText(field)) {
      MapScalar(node, path, field, message);
    } else {
      MapMessage(node, path, message->GetReflection()->MutableMessage(message, &field));
    }
  }

  Status status() const {
    if (problems_.empty()) return OkStatus();
    std::vector<std::string> shown(
        problems_.begin(),
        problems_.begin() + std::min<ptrdiff_t>(std::ssize(problems_), kMaxSpecProblems));
    if (std::ssize(problems_) > kMaxSpecProblems) {
      shown.push_back(
          StrFormat("and %d more", static_cast<int>(problems_.size()) - kMaxSpecProblems));
    }
    return InvalidArgumentError(StrJoin(shown, "\n"));
  }

  std::map<std::string, int>& lines() { return lines_; }

 private:
  // A recipe written out as a section: the server checks it.
  void MapRecipe(const YAML::Node& node, const std::string& path, v1::PrecisionSpec* precision) {
    const Result<Json> json = NodeToJson(node);
    if (!json.ok()) {
      Report(node, path, json.status().message());
      return;
    }
    precision->set_recipe_json(json->Dump());
    lines_["precision.recipeJson"] = node.Mark().line + 1;
  }

  std::string KeyOf(const YAML::Node& node, const std::string& path) {
    if (node.IsScalar() && !node.Scalar().empty()) return node.Scalar();
    Report(node, path, "keys are plain names");
    return "";
  }

  void MapMap(const YAML::Node& node, const std::string& path, const FieldDescriptor& field,
              Message* message) {
    if (!node.IsMap()) {
      Report(node, path, std::string("expects a section of name: value pairs, got ") + Shape(node));
      return;
    }
    const FieldDescriptor* key_field = field.message_type()->map_key();
    const FieldDescriptor* value_field = field.message_type()->map_value();
    std::set<std::string> seen;
    for (const auto& pair : node) {
      const std::string key = KeyOf(pair.first, path);
      if (key.empty()) continue;
      const std::string key_path = path + "." + key;
      if (!seen.insert(key).second) {
        Report(pair.first, "", "key '" + key_path + "' is given twice; keep one");
        continue;
      }
      lines_[key_path] = pair.first.Mark().line + 1;
      Message* entry = message->GetReflection()->AddMessage(message, &field);
      Check(pair.first, key_path, SetFieldFromText(*key_field, key, false, entry));
      if (!pair.second.IsNull()) MapScalar(pair.second, key_path, *value_field, entry);
    }
  }

  void MapScalar(const YAML::Node& node, const std::string& path, const FieldDescriptor& field,
                 Message* message) {
    if (!node.IsScalar()) {
      Report(
          node, path,
          "expects " + ExpectedForm(field) + ", got " + (node.IsNull() ? "nothing" : Shape(node)));
      return;
    }
    // yaml-cpp tags quoted and block scalars "!".
    const bool quoted = node.Tag() == "!";
    Check(node, path, SetFieldFromText(field, node.Scalar(), quoted, message));
  }

  void Check(const YAML::Node& node, const std::string& path, const Status& status) {
    if (!status.ok()) Report(node, path, status.message());
  }

  void Report(const YAML::Node& node, const std::string& path, const std::string& problem) {
    std::string where;
    if (!file_name_.empty()) {
      where = file_name_ + ":" + std::to_string(node.Mark().line + 1) + ": ";
    }
    problems_.push_back(where + (path.empty() ? "" : path + ": ") + problem);
  }

  const std::string file_name_;
  std::vector<std::string> problems_;
  std::map<std::string, int> lines_;
};

Status YamlError(const YAML::Exception& error, const std::string& file_name) {
  return InvalidArgumentError(StrFormat("%s:%d:%d: not valid YAML: %s", file_name.c_str(),
                                        error.mark.line + 1, error.mark.column + 1,
                                        error.msg.c_str()));
}

}  // namespace

Result<ParsedJob> ParseJobYaml(std::string_view text, const std::string& file_name) {
  if (std::ssize(text) > kMaxJobFileBytes) {
    return InvalidArgumentError(StrFormat("%s: %lld bytes are more than a job file may have (%lld)",
                                          file_name.c_str(), static_cast<long long>(text.size()),
                                          static_cast<long long>(kMaxJobFileBytes)));
  }
  ParsedJob job;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
    if (documents.empty() || !documents[0].IsDefined() || documents[0].IsNull()) {
      return InvalidArgumentError(file_name + ":1: the file is empty; see 'nibble submit --help'");
    }
    if (documents.size() > 1) {
      return InvalidArgumentError(
          StrFormat("%s:%d: a job file holds one document; put each job in a file of its own",
                    file_name.c_str(), documents[1].Mark().line + 1));
    }
    Mapper mapper(file_name);
    mapper.MapMessage(documents[0], "", &job.spec);
    RETURN_IF_ERROR(mapper.status());
    job.lines = std::move(mapper.lines());
  } catch (const YAML::Exception& error) {
    return YamlError(error, file_name);
  }
  return job;
}

Result<ParsedJob> ReadJobFile(const std::string& path) {
  if (path != "-") {
    const auto text = ReadFile(path, kMaxJobFileBytes);
    if (text.status().code() == StatusCode::kResourceExhausted) {
      return InvalidArgumentError(text.status().message());
    }
    RETURN_IF_ERROR(text.status());
    return ParseJobYaml(*text, path);
  }
  std::string text;
  char buffer[4096];
  while (std::cin.read(buffer, sizeof(buffer)) || std::cin.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(std::cin.gcount()));
    if (std::ssize(text) > kMaxJobFileBytes) break;
  }
  return ParseJobYaml(text, "stdin");
}

Status ApplySetting(const std::string& setting, v1::JobSpec* spec) {
  const size_t equals = setting.find('=');
  const Status form =
      InvalidArgumentError("--set " + setting + ": write path=value, e.g. --set model.layers=4");
  if (equals == std::string::npos || equals == 0) return form;
  const std::string path = setting.substr(0, equals);
  const std::string value = setting.substr(equals + 1);
  const auto with_context = [&](const std::string& problem) {
    return InvalidArgumentError("--set " + setting + ": " + problem);
  };

  Message* message = spec;
  std::string rest = path;
  while (true) {
    const size_t dot = rest.find('.');
    const std::string key = rest.substr(0, dot);
    const FieldDescriptor* field = FindKey(*message->GetDescriptor(), key);
    if (field == nullptr) return with_context(UnknownKey(*message->GetDescriptor(), key));
    rest = dot == std::string::npos ? "" : rest.substr(dot + 1);
    if (field->is_map()) {
      if (rest.empty()) return with_context("name the entry, e.g. " + path + ".key=value");
      auto* entries = message->GetReflection();
      // The first match wins, so an older entry of the same key must go.
      for (int i = entries->FieldSize(*message, field) - 1; i >= 0; --i) {
        const Message& entry = entries->GetRepeatedMessage(*message, field, i);
        const std::string& entry_key =
            entry.GetReflection()->GetString(entry, field->message_type()->map_key());
        if (entry_key != rest) continue;
        entries->SwapElements(message, field, i, entries->FieldSize(*message, field) - 1);
        entries->RemoveLast(message, field);
      }
      Message* entry = entries->AddMessage(message, field);
      RETURN_IF_ERROR(SetFieldFromText(*field->message_type()->map_key(), rest, false, entry));
      const Status set = SetFieldFromText(*field->message_type()->map_value(), value, false, entry);
      return set.ok() ? set : with_context(set.message());
    }
    if (rest.empty() && !field->is_repeated()) {
      if (!TakesText(*field)) return with_context("'" + path + "' is a section; name a key in it");
      const Status set = SetFieldFromText(*field, value, false, message);
      return set.ok() ? set : with_context(set.message());
    }
    if (rest.empty()) {
      message->GetReflection()->ClearField(message, field);
      Mapper mapper("");
      try {
        mapper.MapField(YAML::Load(value), "", *field, message);
      } catch (const YAML::Exception& error) {
        return with_context("not a YAML list: " + error.msg);
      }
      const Status set = mapper.status();
      return set.ok() ? set : with_context(set.message());
    }
    if (field->is_repeated() || TakesText(*field)) {
      return with_context("'" + key + "' is a value, it has no key '" + rest + "'");
    }
    message = message->GetReflection()->MutableMessage(message, field);
  }
}

std::string LocatedMessage(const ParsedJob& job, const std::string& file_name,
                           const std::string& field, const std::string& description) {
  std::string path = field;
  while (!path.empty()) {
    if (const auto found = job.lines.find(path); found != job.lines.end()) {
      return StrFormat("%s:%d: %s: %s", file_name.c_str(), found->second, field.c_str(),
                       description.c_str());
    }
    const size_t dot = path.rfind('.');
    path = dot == std::string::npos ? "" : path.substr(0, dot);
  }
  return file_name + ": " + (field.empty() ? "" : field + ": ") + description;
}

}  // namespace nibble
