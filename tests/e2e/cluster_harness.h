// SPDX-License-Identifier: Apache-2.0
//
// ClusterHarness: the real controller, worker and command line as processes in a scratch folder.
//
// Thread-compatible. Owns its processes and its folder; both are gone after destruction, and
// trainers that a killed worker left behind are killed too.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/process.h"
#include "base/status.h"

namespace nibble {

// True when every program of the service was built; tests skip with a message otherwise.
bool ProgramsAreBuilt();

class ClusterHarness {
 public:
  // Prepares folder, corpus, tokenizer and shards; starts nothing.
  static Result<std::unique_ptr<ClusterHarness>> Create();
  ~ClusterHarness();

  Status StartController();
  Status StartWorker();
  Status KillController();  // SIGKILL
  Status KillWorker();      // SIGKILL: its trainers go on
  Status KillTrainers();    // SIGKILL to every trainer of this cluster
  // Until `nibble nodes` shows a worker that is up.
  Status WaitForWorker(std::chrono::seconds timeout);

  // Runs `nibble --server <controller> ARGS`; the command's own output and exit status.
  Result<CommandOutput> Nibble(std::vector<std::string> arguments) const;
  // The same with `-o json`, parsed. The exit status must be 0.
  Result<Json> NibbleJson(std::vector<std::string> arguments) const;

  // Submits tests/e2e/tiny.yaml with `--set` pairs; returns the job's id.
  Result<std::string> Submit(const std::vector<std::string>& set = {}) const;
  // "RUNNING", "SUCCEEDED", ...; "" while the controller is away.
  std::string JobState(const std::string& job) const;
  // Until `done(job as JSON)`; DEADLINE_EXCEEDED with the last JSON otherwise. Survives a
  // controller that is away.
  Result<Json> WaitForJob(const std::string& job, std::chrono::seconds timeout,
                          const std::function<bool(const Json&)>& done) const;
  // Until the state is terminal.
  Result<Json> WaitForEnd(const std::string& job, std::chrono::seconds timeout) const;

  // SHA-256 of the final weights in the job's newest checkpoint.
  Result<std::string> WeightsHash(const Json& job) const;

  const std::string& folder() const { return folder_; }
  const std::string& data_folder() const { return data_folder_; }
  const std::string& server_address() const { return server_address_; }
  const std::string& http_address() const { return http_address_; }
  std::vector<pid_t> TrainerPids() const;

 private:
  ClusterHarness() = default;
  Status PrepareData();

  std::string folder_;
  std::string data_folder_;
  std::string server_address_;
  std::string http_address_;
  std::optional<Process> controller_;
  std::optional<Process> worker_;
};

// State of a job as JSON without the enum prefix: "RUNNING".
std::string StateOf(const Json& job);
bool IsTerminal(const std::string& state);

}  // namespace nibble
