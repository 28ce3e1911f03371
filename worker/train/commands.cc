// SPDX-License-Identifier: Apache-2.0
#include "worker/train/commands.h"

#include <cstdio>

#include "base/files.h"
#include "base/json.h"

namespace nibble {

namespace {
constexpr int64_t kMaxConfigBytes = 16 << 20;
}  // namespace

Result<RunConfig> LoadRunConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  const Result<Json> json = Json::Parse(text);
  if (!json.ok()) return json.status().WithContext(path);
  Result<RunConfig> config = RunConfigFromJson(*json);
  if (!config.ok()) return config.status().WithContext(path);
  return config;
}

int UsageError(const Status& status, const char* command) {
  std::fprintf(stderr, "nibble-trainer: %s\nsee: nibble-trainer %s--help\n",
               status.message().c_str(), command);
  return kExitUsage;
}

int Fail(const Status& status, int code) {
  std::fprintf(stderr, "nibble-trainer: %s\n", status.ToString().c_str());
  return code;
}

int PrintOut(const std::string& text) {
  const bool written = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  return written ? 0 : kExitFailed;
}

}  // namespace nibble
