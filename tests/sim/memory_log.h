// SPDX-License-Identifier: Apache-2.0
//
// MemoryLog: an EventLog whose disk is a struct that outlives the controller using it. It keeps
// the very texts the SQLite log keeps, and can be told to be full.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "server/store/event_log.h"

namespace nibble::sim {

struct Disk {
  std::vector<std::string> events;  // JSON texts; sequence = index + 1
  std::map<std::string, std::string> jobs;
  std::map<std::string, std::string> workers;
  std::string counters;
  bool full = false;
};

class MemoryLog : public store::EventLog {
 public:
  explicit MemoryLog(Disk* disk) : disk_(disk) {}

  Status Append(const std::vector<core::Event>& events) override {
    if (events.empty()) return OkStatus();
    if (disk_->full) return ResourceExhaustedError("the simulated disk is full");
    for (const core::Event& event : events) {
      NIBBLE_CHECK(event.sequence == static_cast<int64_t>(disk_->events.size()) + 1);
      disk_->events.push_back(core::ToJson(event).Dump());
    }
    return OkStatus();
  }

  Result<core::State> Load() override {
    core::SnapshotRows rows;
    rows.jobs.assign(disk_->jobs.begin(), disk_->jobs.end());
    rows.workers.assign(disk_->workers.begin(), disk_->workers.end());
    rows.counters = disk_->counters;
    ASSIGN_OR_RETURN(core::State state, core::State::FromSnapshot(rows));
    RETURN_IF_ERROR(Replay(state));
    return state;
  }

  // The same from the first event on, without snapshots.
  Result<core::State> LoadFromBeginning() {
    core::State state;
    RETURN_IF_ERROR(Replay(state));
    return state;
  }

  Status SaveSnapshot(const core::SnapshotRows& rows) override {
    if (disk_->full) return ResourceExhaustedError("the simulated disk is full");
    for (const auto& [id, body] : rows.jobs) disk_->jobs[id] = body;
    for (const auto& [id, body] : rows.workers) disk_->workers[id] = body;
    disk_->counters = rows.counters;
    return OkStatus();
  }

  Result<int64_t> Compact(int64_t) override { return int64_t{0}; }

  Result<std::vector<core::Event>> History(const std::string&, const std::string&, int64_t,
                                           int) const override {
    return UnimplementedError("the simulator reads no history");
  }

 private:
  Status Replay(core::State& state) const {
    for (size_t i = static_cast<size_t>(state.last_sequence()); i < disk_->events.size(); ++i) {
      ASSIGN_OR_RETURN(const Json json, Json::Parse(disk_->events[i]));
      ASSIGN_OR_RETURN(core::Event event, core::EventFromJson(json));
      event.sequence = static_cast<int64_t>(i) + 1;
      RETURN_IF_ERROR(state.Apply(event));
      state.Commit();
    }
    return OkStatus();
  }

  Disk* disk_;
};

}  // namespace nibble::sim
