// SPDX-License-Identifier: Apache-2.0
//
// Messages between a worker and its controller as plain structs, so that everything below the
// session is free of gRPC. wire.cc maps them to nibble.v1. Value types, thread-compatible.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "worker/spec/journal.h"

namespace nibble::agent {

// One try to run a job. The epoch grows with every placement of the job and fences older tries.
struct AttemptKey {
  std::string job_id;
  int attempt = 0;
  int64_t epoch = 0;
  friend bool operator==(const AttemptKey&, const AttemptKey&) = default;
  std::string ToString() const {
    return job_id + "/" + std::to_string(attempt) + "@" + std::to_string(epoch);
  }
};

inline constexpr char kStateStarting[] = "starting";
inline constexpr char kStateRunning[] = "running";
inline constexpr char kStateStopping[] = "stopping";
inline constexpr char kStateEnded[] = "ended";

struct AttemptReport {
  AttemptKey key;
  std::string state;
  int64_t step = 0;
  int exit_code = 0;       // ended only
  int signal = 0;          // ended only
  std::string end_reason;  // the trainer's own word, "" when it left none
  std::string end_message;
  bool start_failed = false;
  // Ended only: the newest checkpoint record of its journal that may not be acknowledged.
  std::optional<JournalRecord> checkpoint;
};

struct StartRequest {
  AttemptKey key;
  std::string run_json;
  std::vector<int> devices;
  std::map<std::string, std::string> env;
  std::string resume_from;
  int world_size = 1;
  std::string job_name;
};

struct StopRequest {
  AttemptKey key;
  bool save = false;
  int64_t grace_ms = 0;  // 0 = the worker's default
  std::string reason;
};

// Consecutive journal records of one attempt's rank.
struct TelemetryBatch {
  AttemptKey key;
  int rank = 0;
  std::vector<JournalRecord> records;
};

// A device slot, proved by the trainer's self-test.
struct DeviceInfo {
  int index = 0;
  std::string kind;  // cpu or cuda
  std::string name;
  int64_t memory_bytes = 0;
  int threads = 0;
  double gflops = 0;
  std::vector<std::string> features;
  std::string visible;  // of a GPU: what CUDA_VISIBLE_DEVICES calls it
};

}  // namespace nibble::agent
