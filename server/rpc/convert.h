// SPDX-License-Identifier: Apache-2.0
//
// Convert: the core's jobs, workers and events as messages, and workers' messages as core inputs.
//
// Thread-safety: pure functions, but for SpecCache, which belongs to the loop's thread.
// The API's JobState has no SCHEDULED: a placed job that its worker has not confirmed is STARTING.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "nibble/v1/controller.pb.h"
#include "nibble/v1/worker.pb.h"
#include "server/core/controller.h"
#include "server/rpc/live_jobs.h"
#include "server/rpc/session_table.h"

namespace nibble::rpc {

inline constexpr size_t kMaxCachedSpecs = 10'000;

// Parsed specs by hash, because every answer about a job carries its spec.
class SpecCache {
 public:
  // An empty spec when the stored text is damaged; the event log's own checks make that a bug.
  const v1::JobSpec& Get(const core::JobSpec& spec);

 private:
  std::map<std::string, v1::JobSpec> specs_;
};

v1::JobState ToProto(core::JobState state);
// UNSPECIFIED matches nothing.
bool Matches(v1::JobState asked, core::JobState state);

// `queue_position` and the reason of a waiting job are filled in by the caller.
v1::Job ToProto(const core::Job& job, const v1::JobSpec& spec,
                const std::optional<LiveValues>& live);
v1::JobEvent ToProto(const core::Event& event);
// `job_of_device` tells the job on a device, "" for a free one.
v1::Node ToProto(const core::Worker& worker, const std::optional<WorkerFacts>& facts,
                 const core::State& state);

// "cpu0": the id of a worker's device. The index is read back with DeviceIndex; -1 for other ids.
std::string DeviceId(const v1::Device& device);
int DeviceIndex(const std::string& id);

core::RegisterWorker ToCore(const v1::Register& message, const std::string& session,
                            const core::State& state);
// Precondition: record.has_checkpoint().
core::Checkpoint CheckpointOf(const v1::JournalRecord& record);
core::AttemptReport ToCore(const v1::AttemptReport& message, const core::State& state,
                           const std::string& worker_id);

v1::ControllerMessage ToProto(const core::Command& command, const core::State& state,
                              const v1::JobSpec* spec);

}  // namespace nibble::rpc
