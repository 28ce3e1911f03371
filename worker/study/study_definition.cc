// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_definition.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/files.h"
#include "base/strings.h"
#include "kernels/recipe/recipe.h"
#include "worker/spec/json_fields.h"
#include "worker/study/json_patch.h"

namespace nibble {
namespace {

constexpr int kMaxExtends = 4;
constexpr char kSuffix[] = ".json";

bool IsName(const std::string& text) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
  };
  return !text.empty() && text.front() != '.' && std::all_of(text.begin(), text.end(), allowed);
}

Result<Json> ReadExtended(const std::string& folder, const std::string& file, int depth) {
  if (depth > kMaxExtends) {
    return InvalidArgumentError(
        StrFormat("study %s: `extends` goes deeper than %d files", file.c_str(), kMaxExtends));
  }
  const std::string path = JoinPath(folder, file);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Result<Json> json = Json::Parse(text);
  if (!json.ok()) return json.status().WithContext(path);
  if (!json->is_object()) return InvalidArgumentError(path + " holds no JSON object");
  const Json* base = json->Find("extends");
  if (base == nullptr) return json;
  if (!base->is_string()) return InvalidArgumentError(path + ": extends is no text");
  ASSIGN_OR_RETURN(const Json below, ReadExtended(folder, base->AsString(), depth + 1));
  return MergePatch(MergePatch(below, *json), Json::Object({{"extends", Json()}}));
}

void ReadRates(const Json& json, const std::string& field, std::vector<double>& rates,
               std::vector<FieldError>& errors) {
  const bool good = json.is_array() && json.size() >= 1 && json.size() <= kMaxRates;
  if (!good) {
    errors.push_back({field, StrFormat("is %s; expected 1 to %d learning rates",
                                       json.Dump().c_str(), kMaxRates)});
    return;
  }
  rates.clear();
  for (const Json& item : json.items()) {
    const double rate = item.AsDouble();
    if (!(rate > 0 && rate < 1e3)) {
      errors.push_back({field, "holds " + item.Dump() + "; expected a number above 0"});
    }
    rates.push_back(rate);
  }
  std::sort(rates.begin(), rates.end());
  rates.erase(std::unique(rates.begin(), rates.end()), rates.end());
}

StudyArm ReadArm(const Json& json, const std::string& field, const std::vector<double>& rates,
                 std::vector<FieldError>& errors) {
  StudyArm arm;
  arm.learning_rates = rates;
  arm.patch = Json::Object();
  if (json.is_string()) {
    arm.name = arm.label = arm.recipe = json.AsString();
  } else {
    JsonFields fields(json, field, errors);
    fields.Read("recipe", arm.recipe);
    arm.name = arm.recipe;
    fields.Read("name", arm.name);
    arm.label = arm.name;
    fields.Read("label", arm.label);
    arm.patch = fields.Section("patch");
    if (arm.patch.is_null()) arm.patch = Json::Object();
    fields.Ignore("learning_rates");
    if (const Json* own = json.Find("learning_rates")) {
      ReadRates(*own, field + ".learning_rates", arm.learning_rates, errors);
    }
    fields.Finish();
  }
  if (arm.recipe.empty()) {
    errors.push_back({field + ".recipe", "is missing; name a built-in recipe"});
  }
  if (!IsName(arm.name)) {
    errors.push_back({field + ".name", "is '" + arm.name + "'; use a-z, 0-9, '_', '-' and '.'"});
  }
  return arm;
}

void ReadArms(const Json& json, bool also_built_in, const std::vector<double>& rates,
              StudyDefinition& study, std::vector<FieldError>& errors) {
  std::set<std::string> names;
  if (!json.is_array()) errors.push_back({"arms", "is missing; expected a list of arms"});
  for (size_t i = 0; i < json.size(); ++i) {
    StudyArm arm = ReadArm(json.At(i), StrFormat("arms[%zu]", i), rates, errors);
    if (!names.insert(arm.name).second) {
      errors.push_back({StrFormat("arms[%zu].name", i), "'" + arm.name + "' comes twice"});
    }
    study.arms.push_back(std::move(arm));
  }
  for (const std::string& name : BuiltInRecipeNames()) {
    if (!also_built_in || !names.insert(name).second) continue;
    study.arms.push_back(ReadArm(Json(name), name, rates, errors));
  }
  if (study.arms.size() > kMaxArms) {
    errors.push_back(
        {"arms", StrFormat("are %zu; a study has at most %d", study.arms.size(), kMaxArms)});
  }
}

void ReadSeeds(const Json& json, std::vector<int64_t>& seeds, std::vector<FieldError>& errors) {
  std::set<int64_t> seen;
  for (const Json& item : json.items()) {
    const bool good = item.is_int() && item.AsInt() >= 0 && item.AsInt() <= UINT32_MAX &&
                      seen.insert(item.AsInt()).second;
    if (!good) errors.push_back({"seeds", "holds " + item.Dump() + "; give each seed once"});
    seeds.push_back(item.AsInt());
  }
  if (seeds.empty() || seeds.size() > kMaxSeeds) {
    errors.push_back({"seeds", StrFormat("are %zu; expected 1 to %d", seeds.size(), kMaxSeeds)});
  }
}

Result<Json> AtScale(const Json& json, const std::string& scale) {
  const Json bare = MergePatch(json, Json::Object({{"scales", Json()}}));
  if (scale == kFullScale) return bare;
  std::vector<std::string> known = {kFullScale};
  for (const Json::Member& member : json["scales"].members()) {
    if (member.first == scale) return MergePatch(bare, member.second);
    known.push_back(member.first);
  }
  return InvalidArgumentError(UnknownNameMessage("scale", scale, known));
}

}  // namespace

int StudyDefinition::baseline_index() const {
  for (size_t i = 0; i < arms.size(); ++i) {
    if (arms[i].name == baseline) return static_cast<int>(i);
  }
  return -1;
}

Result<StudyDefinition> ParseStudy(const std::string& name, const Json& json,
                                   const std::string& scale) {
  ASSIGN_OR_RETURN(const Json at_scale, AtScale(json, scale));
  StudyDefinition study;
  study.name = name;
  study.scale = scale;
  study.baseline = "bf16";
  std::vector<FieldError> errors;
  JsonFields fields(at_scale, "", errors);
  fields.Read("title", study.title);
  fields.Read("question", study.question);
  fields.Read("baseline", study.baseline);
  bool also_built_in = false;
  fields.Read("also_built_in", also_built_in);
  study.run = fields.Section("run");
  JsonFields corpus(fields.Section("corpus"), "corpus", errors);
  corpus.ReadInt("vocab_size", study.corpus.vocab_size, 264, 65536);
  corpus.ReadReal("val_fraction", study.corpus.val_fraction, 0.001, 0.5);
  corpus.Finish();
  for (const char* list : {"learning_rates", "seeds", "arms"}) fields.Ignore(list);
  std::vector<double> rates;
  ReadRates(at_scale["learning_rates"], "learning_rates", rates, errors);
  ReadSeeds(at_scale["seeds"], study.seeds, errors);
  ReadArms(at_scale["arms"], also_built_in, rates, study, errors);
  fields.Finish();
  if (study.baseline_index() < 0) {
    errors.push_back({"baseline", "is '" + study.baseline + "', which is no arm of the study"});
  }
  if (errors.empty()) return study;
  std::vector<std::string> lines;
  for (const FieldError& error : errors) lines.push_back(error.field + " " + error.description);
  return InvalidArgumentError("study " + name + ": " + StrJoin(lines, "\n"));
}

Result<StudyDefinition> LoadStudy(const std::string& folder, const std::string& name,
                                  const std::string& scale) {
  ASSIGN_OR_RETURN(const std::vector<StudyListing> listed, ListStudies(folder));
  std::vector<std::string> known;
  for (const StudyListing& study : listed) known.push_back(study.name);
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    return NotFoundError(UnknownNameMessage("study in " + folder, name, known));
  }
  ASSIGN_OR_RETURN(const Json json, ReadExtended(folder, name + kSuffix, 0));
  return ParseStudy(name, json, scale);
}

Result<std::vector<StudyListing>> ListStudies(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  std::vector<StudyListing> studies;
  for (const std::string& file : names) {
    if (!file.ends_with(kSuffix)) continue;
    ASSIGN_OR_RETURN(const Json json, ReadExtended(folder, file, 0));
    if (json.Find("arms") == nullptr) continue;
    studies.push_back(
        {file.substr(0, file.size() - sizeof(kSuffix) + 1), json["title"].AsString()});
  }
  return studies;
}

}  // namespace nibble
