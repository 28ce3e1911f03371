// SPDX-License-Identifier: Apache-2.0
#include "worker/study/run_store.h"

#include <utility>

#include "base/files.h"

namespace nibble {
namespace {

constexpr size_t kFolderDigits = 16;  // of the hash; the record holds all of it
constexpr char kResultName[] = "result.json";

}  // namespace

std::string RunStore::RunFolder(const std::string& hash) const {
  return JoinPath(JoinPath(folder_, "runs"), hash.substr(0, kFolderDigits));
}

const RunRecord* RunStore::Find(const std::string& hash) {
  const auto known = records_.find(hash);
  if (known != records_.end()) return known->second.get();
  const auto text = ReadFile(JoinPath(RunFolder(hash), kResultName));
  if (!text.ok()) return nullptr;
  const auto json = Json::Parse(*text);
  if (!json.ok()) return nullptr;
  Result<RunRecord> record = RunRecordFromJson(*json);
  if (!record.ok() || record->hash != hash) return nullptr;
  if (retry_refused_ && record->state == RunState::kNotRun) return nullptr;
  return (records_[hash] = std::make_unique<RunRecord>(*std::move(record))).get();
}

Status RunStore::Save(RunRecord record) {
  const std::string folder = RunFolder(record.hash);
  RETURN_IF_ERROR(MakeDirectories(folder));
  RETURN_IF_ERROR(
      AtomicWriteFile(JoinPath(folder, kResultName), RunRecordToJson(record).Dump() + "\n"));
  const std::string hash = record.hash;
  records_[hash] = std::make_unique<RunRecord>(std::move(record));
  return OkStatus();
}

}  // namespace nibble
