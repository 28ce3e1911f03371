// SPDX-License-Identifier: Apache-2.0
//
// Driver: a Controller with a hand-moved clock, for the unit tests of this folder. Every decision
// is committed at once, and its events are also folded into a second state through their JSON, so
// each test checks on the way that the log alone gives the same state.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "server/core/controller.h"

namespace nibble::core {

class Driver {
 public:
  explicit Driver(Options options = {}) : options_(options), controller_(options, State(), Now()) {}

  Instant Now() const { return {1'700'000'000'000 + now_ms, now_ms}; }
  Controller& controller() { return controller_; }
  const State& state() const { return controller_.state(); }
  const Job& job(const std::string& id) const { return *state().FindJob(id); }
  JobState job_state(const std::string& id) const { return job(id).state; }

  Decision Do(Input input) {
    Decision decision = controller_.Handle(std::move(input), Now());
    controller_.Commit();
    for (const Event& event : decision.events) {
      Result<Json> json = Json::Parse(ToJson(event).Dump());
      EXPECT_TRUE(json.ok());
      Result<Event> copy = EventFromJson(*json);
      EXPECT_TRUE(copy.ok()) << copy.status().ToString();
      copy->sequence = event.sequence;
      EXPECT_EQ(copy_.Apply(*copy), OkStatus());
      copy_.Commit();
    }
    for (const Event& event : decision.events) {
      const Job* job = state().FindJob(event.job_id);
      if (job == nullptr) continue;
      EXPECT_EQ(ToJson(*copy_.FindJob(event.job_id)).Dump(), ToJson(*job).Dump());
    }
    return decision;
  }
  // Lets time pass in ticks of a second, with heartbeats of the connected workers.
  std::vector<Command> Pass(int64_t seconds, bool heartbeats = true) {
    std::vector<Command> commands;
    for (int64_t i = 0; i < seconds; ++i) {
      now_ms += 1'000;
      for (const std::string& id : connected_) {
        if (heartbeats && i % 5 == 4) Do(Heartbeat{id, "s-" + id, 0, false, {}});
      }
      Decision decision = Do(Tick{});
      for (Command& command : decision.commands) commands.push_back(std::move(command));
    }
    return commands;
  }
  Decision Join(const std::string& id, int devices = 1, const std::string& pool = "main",
                std::vector<AttemptReport> inventory = {}) {
    RegisterWorker input;
    input.worker.id = id;
    input.worker.host = "host-" + id;
    input.worker.address = id + ":9000";
    input.worker.pool = pool;
    for (int i = 0; i < devices; ++i) {
      Device device;
      device.id = "cpu" + std::to_string(i);
      device.memory_bytes = int64_t{8} << 30;
      device.proved_features = {"fp4.reference"};
      input.worker.devices.push_back(device);
    }
    input.session = "s-" + id;
    input.inventory = std::move(inventory);
    connected_.push_back(id);
    return Do(std::move(input));
  }
  // Submits and ticks; returns the job's id.
  std::string Submit(JobSpec spec = Spec()) {
    const Decision decision = Do(SubmitJob{std::move(spec), "", "alice", false});
    EXPECT_EQ(decision.reply, OkStatus());
    Do(Tick{});
    return decision.job_id;
  }
  // The worker says this of the job's live attempt.
  Decision Say(const std::string& worker, const std::string& job_id, SharePhase phase,
               Outcome outcome = {}, int64_t step = 0) {
    Decision decision = Do(ReportAttempt{
        worker, "s-" + worker, 0, ReportOf(worker, job_id, phase, std::move(outcome), step)});
    Do(Tick{});
    return decision;
  }
  AttemptReport ReportOf(const std::string& worker, const std::string& job_id, SharePhase phase,
                         Outcome outcome = {}, int64_t step = 0) {
    const Attempt& attempt = job(job_id).attempts.back();
    return {job_id, attempt.number,    attempt.epoch, phase, attempt.FindShare(worker)->devices,
            step,   std::move(outcome)};
  }
  // Submits a job that then runs on worker w-1 at step 1.
  std::string Run(JobSpec spec = Spec()) {
    const std::string id = Submit(std::move(spec));
    Say("w-1", id, SharePhase::kRunning, {}, 1);
    EXPECT_EQ(job_state(id), JobState::kRunning);
    return id;
  }
  // The controller starts again from what the log holds.
  void Restart() {
    controller_ = Controller(options_, copy_, Now());
    connected_.clear();
  }
  void Disconnect(const std::string& id) { std::erase(connected_, id); }

  static JobSpec Spec() {
    JobSpec spec;
    spec.name = "job";
    spec.project = "research";
    spec.user = "alice";
    spec.spec_json = "{}";
    return spec;
  }
  static Outcome Ended(EndReason reported, int exit_code = 0, int signal = 0) {
    Outcome outcome;
    outcome.reported = reported;
    outcome.exit_code = exit_code;
    outcome.signal = signal;
    return outcome;
  }

  int64_t now_ms = 1'000'000;

 private:
  Options options_;
  Controller controller_;
  State copy_;
  std::vector<std::string> connected_;
};

// The commands of one kind.
template <typename Body>
std::vector<Body> Of(const std::vector<Command>& commands) {
  std::vector<Body> bodies;
  for (const Command& command : commands) {
    if (const auto* body = std::get_if<Body>(&command.body)) bodies.push_back(*body);
  }
  return bodies;
}

inline Checkpoint CheckpointAt(int64_t step) {
  Checkpoint checkpoint;
  checkpoint.step = step;
  checkpoint.path = "c/" + std::to_string(step);
  return checkpoint;
}

}  // namespace nibble::core
