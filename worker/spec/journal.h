// SPDX-License-Identifier: Apache-2.0
//
// Journal records: the lines a trainer appends to <run dir>/journal.jsonl and a worker tails.
//
// One JSON object per line, {"seq":N,"t":unix_ms,"type":"step",...}; seq counts 1, 2, 3 ... within
// one attempt. docs/reference/journal.md specifies every type. A line is appended with one write;
// a torn last line (no '\n') belongs to nobody and is overwritten or ignored.
// Thread-safety: value types and pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>

#include "base/json.h"
#include "base/status.h"

namespace nibble {

inline constexpr char kJournalFileName[] = "journal.jsonl";
inline constexpr int64_t kMaxJournalLineBytes = 64 * 1024;

struct StartRecord {
  int64_t resumed_from_step = 0;
  int64_t steps_total = 0;
  int64_t parameters = 0;
  int64_t tokens_per_step = 0;
  std::string recipe;
  std::map<std::string, std::string> paths;  // "fprop" -> "reference"
};

struct StepRecord {
  int64_t step = 0;
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;
  double step_seconds = 0;
  double tokens_per_second = 0;
};

struct ValidationRecord {
  int64_t step = 0;
  double loss = 0;
};

// (activation|weight|gradient) _ (attention|mlp) _ (first|middle|last): 18 classes.
inline constexpr size_t kHealthClasses = 18;
struct HealthRecord {
  int64_t step = 0;
  std::string tensor_class;  // "activation_attention_first"
  double underflow_ratio = 0;
  double saturation_ratio = 0;
  double mse = 0;
  double snr_db = 0;
  double cosine = 0;
  double scale_min = 0;
  double scale_max = 0;
  double grad_noise_ratio = 0;  // gradients only
  int64_t nonfinite_amax = 0;
};

struct CheckpointRecord {
  int64_t step = 0;
  std::string path;
  double save_seconds = 0;
  int64_t bytes = 0;
  bool best = false;
};

struct MemoryRecord {
  std::map<std::string, int64_t> bytes;
};

struct LogRecord {
  std::string level;  // info, warning, error
  std::string text;
};

// Reasons a trainer ends with; the process's exit code follows TrainerExitCode.
inline constexpr char kEndCompleted[] = "Completed";
inline constexpr char kEndPreempted[] = "Preempted";  // asked to stop; state is saved
inline constexpr char kEndDiverged[] = "Diverged";
inline constexpr char kEndDataUnreadable[] = "DataUnreadable";
inline constexpr char kEndCheckpointUnreadable[] = "CheckpointUnreadable";
inline constexpr char kEndOutOfMemoryHost[] = "OutOfMemoryHost";
inline constexpr char kEndOutOfMemoryGpu[] = "OutOfMemoryGpu";
inline constexpr char kEndInvalidSpec[] = "InvalidSpec";
inline constexpr char kEndUserError[] = "UserError";  // anything else, e.g. a full disk

struct EndRecord {
  std::string reason;
  std::string message;
  int64_t step = 0;
  std::string weights_sha256;
  double final_loss = 0;
  double final_validation_loss = 0;
};

struct JournalRecord {
  int64_t seq = 0;
  int64_t time_ms = 0;
  std::variant<StartRecord, StepRecord, ValidationRecord, HealthRecord, CheckpointRecord,
               MemoryRecord, LogRecord, EndRecord>
      event;
};

// One line, '\n' included. Text longer than kMaxJournalLineBytes is cut in the log/message field.
std::string EncodeJournalLine(const JournalRecord& record);

// Parses one line without its '\n'. DATA_LOSS for anything malformed or of an unknown type.
Result<JournalRecord> DecodeJournalLine(std::string_view line);

// Exit code of nibble-trainer for an end reason: 0 Completed and Preempted, 10 Diverged,
// 11 DataUnreadable, 12 CheckpointUnreadable, 13 OutOfMemoryHost, 2 InvalidSpec, 1 otherwise.
int TrainerExitCode(std::string_view end_reason);

}  // namespace nibble
