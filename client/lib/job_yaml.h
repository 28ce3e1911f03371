// SPDX-License-Identifier: Apache-2.0
//
// Job files: YAML to nibble.v1.JobSpec, following the message's own fields.
//
// One name per key: the lowerCamelCase JSON name. Everything that does not fit is reported at once,
// each with file, line and path. Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "nibble/v1/job.pb.h"

namespace nibble {

inline constexpr int64_t kMaxJobFileBytes = 1 << 20;
inline constexpr int kMaxSpecProblems = 50;  // more are counted, not listed

struct ParsedJob {
  v1::JobSpec spec;
  std::map<std::string, int> lines;  // "model.heads" -> line, from 1
};

// `file_name` appears in messages. INVALID_ARGUMENT, one problem a line:
// "job.yaml:12: unknown key 'modle'; did you mean 'model'?".
Result<ParsedJob> ParseJobYaml(std::string_view text, const std::string& file_name);

// Reads a file, or standard input for "-".
Result<ParsedJob> ReadJobFile(const std::string& path);

// Applies "path=value", e.g. "model.layers=4", "metadata.labels.arm=fp4" or "data.train=[a, b]".
// The value follows the same rules as in a file. Later settings replace earlier values.
Status ApplySetting(const std::string& setting, v1::JobSpec* spec);

// "job.yaml:12: model.heads: ..." when the path (or a parent of it) stands in the file.
std::string LocatedMessage(const ParsedJob& job, const std::string& file_name,
                           const std::string& field, const std::string& description);

}  // namespace nibble
