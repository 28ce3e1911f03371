// SPDX-License-Identifier: Apache-2.0
#include "worker/train/checkpoint.h"

#include <algorithm>
#include <utility>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

constexpr int64_t kMaxJsonFileBytes = 16 << 20;
constexpr int kStateVersion = 1;
constexpr int kManifestVersion = 1;

Json OptionalNumber(const std::optional<double>& value) {
  return value.has_value() ? Json(*value) : Json();
}

std::optional<double> ReadOptionalNumber(const Json& json) {
  if (!json.is_number()) return std::nullopt;
  return json.AsDouble();
}

Result<Json> ReadJsonFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxJsonFileBytes));
  Result<Json> json = Json::Parse(text);
  if (!json.ok()) return DataLossError(path + ": " + json.status().message());
  return json;
}

}  // namespace

Json TrainingState::ToJson() const {
  return Json::Object({{"version", kStateVersion},
                       {"step", step},
                       {"tokens", tokens},
                       {"cursor", cursor.ToJson()},
                       {"data_fingerprint", data_fingerprint},
                       {"seed", static_cast<int64_t>(seed)},
                       {"recipe", recipe},
                       {"stage", stage},
                       {"train_loss", train_loss},
                       {"validation_loss", OptionalNumber(validation_loss)},
                       {"best_validation_loss", OptionalNumber(best_validation_loss)},
                       {"weights_sha256", weights_sha256},
                       {"attempt", attempt},
                       {"epoch", epoch},
                       {"spec", spec}});
}

Result<TrainingState> TrainingState::FromJson(const Json& json) {
  if (json["version"].AsInt() != kStateVersion) {
    return DataLossError(StrFormat("version is %lld, this program reads %d",
                                   static_cast<long long>(json["version"].AsInt()), kStateVersion));
  }
  TrainingState s;
  for (const char* key : {"step", "tokens", "seed", "attempt", "epoch"}) {
    if (!json[key].is_int() || json[key].AsInt() < 0) {
      return DataLossError(std::string(key) + " is missing or no count");
    }
  }
  s.step = json["step"].AsInt();
  s.tokens = json["tokens"].AsInt();
  const Result<DataCursor> cursor = DataCursor::FromJson(json["cursor"]);
  if (!cursor.ok()) return DataLossError("cursor: " + cursor.status().message());
  s.cursor = *cursor;
  s.data_fingerprint = json["data_fingerprint"].AsString();
  s.seed = static_cast<uint32_t>(json["seed"].AsInt());
  s.recipe = json["recipe"].AsString();
  s.stage = json["stage"].AsInt(-1);
  s.train_loss = json["train_loss"].AsDouble();
  s.validation_loss = ReadOptionalNumber(json["validation_loss"]);
  s.best_validation_loss = ReadOptionalNumber(json["best_validation_loss"]);
  s.weights_sha256 = json["weights_sha256"].AsString();
  s.attempt = json["attempt"].AsInt();
  s.epoch = json["epoch"].AsInt();
  s.spec = json["spec"];
  return s;
}

Result<std::vector<ManifestEntry>> ReadManifest(const std::string& folder) {
  const std::string path = JoinPath(folder, kManifestFileName);
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  if (json["version"].AsInt() != kManifestVersion || !json["files"].is_array()) {
    return DataLossError(path + ": no manifest of version " + std::to_string(kManifestVersion));
  }
  std::vector<ManifestEntry> entries;
  for (const Json& file : json["files"].items()) {
    ManifestEntry entry{file["name"].AsString(),
                        {file["bytes"].AsInt(-1), file["sha256"].AsString()}};
    const bool plain = !entry.name.empty() && entry.name == BaseName(entry.name);
    if (!plain || entry.digest.size_bytes < 0 || entry.digest.sha256.size() != 64) {
      return DataLossError(path + ": entry '" + entry.name + "' needs name, bytes and sha256");
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

Result<std::vector<ManifestEntry>> VerifyCheckpoint(const std::string& folder) {
  ASSIGN_OR_RETURN(std::vector<ManifestEntry> entries, ReadManifest(folder));
  for (const ManifestEntry& entry : entries) {
    const std::string path = JoinPath(folder, entry.name);
    const Result<int64_t> size = FileSizeBytes(path);
    if (!size.ok()) return DataLossError("file of the manifest: " + size.status().message());
    if (*size != entry.digest.size_bytes) {
      return DataLossError(StrFormat("%s has %lld bytes, its manifest says %lld", path.c_str(),
                                     static_cast<long long>(*size),
                                     static_cast<long long>(entry.digest.size_bytes)));
    }
    ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(path));
    if (digest.sha256 != entry.digest.sha256) {
      return DataLossError(path + " is damaged: SHA-256 " + digest.sha256 + ", its manifest says " +
                           entry.digest.sha256);
    }
  }
  for (const char* name : {kWeightsFileName, kConfigFileName, kStateFileName}) {
    const bool listed = std::any_of(entries.begin(), entries.end(),
                                    [&](const ManifestEntry& e) { return e.name == name; });
    if (!listed) return DataLossError(folder + ": its manifest lacks " + name);
  }
  return entries;
}

Result<TrainingState> ReadTrainingState(const std::string& folder) {
  const std::string path = JoinPath(folder, kStateFileName);
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  Result<TrainingState> state = TrainingState::FromJson(json);
  if (!state.ok()) return state.status().WithContext(path);
  return state;
}

Result<HuggingFaceModel> ReadModelConfig(const std::string& folder) {
  const std::string path = JoinPath(folder, kConfigFileName);
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  Result<HuggingFaceModel> model = ModelConfigFromHuggingFace(json);
  if (!model.ok()) return model.status().WithContext(folder);
  return model;
}

}  // namespace nibble
