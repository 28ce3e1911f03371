// SPDX-License-Identifier: Apache-2.0
//
// World: the controller's shipped code (store::Engine on core::Controller) with fake workers and
// clients in virtual time, under faults drawn from one seed.
//
// Faults: lost, repeated and delayed messages; worker, host and trainer crashes; paused workers;
// controller kills before and after persisting, with replay from the log; a full disk; jumps of
// the wall clock. After every step of the controller the invariants of controller.h are checked;
// the first violation ends the run and is reported with the seed. One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "server/store/engine.h"
#include "tests/sim/fake_worker.h"
#include "tests/sim/memory_log.h"
#include "tests/sim/random.h"

namespace nibble::sim {

struct WorldOptions {
  uint64_t seed = 1;
  int fault_seconds = 3'600;  // virtual time with faults and new jobs
  int calm_seconds = 20'000;  // within which every job must end once faults stop
};

struct Report {
  std::string violation;  // "" = none
  int64_t events = 0;
  int64_t steps = 0;
  int jobs = 0;
  int controller_kills = 0;
  std::map<std::string, int> ended;  // state -> jobs
};

class World {
 public:
  explicit World(WorldOptions options);
  Report Run();

 private:
  // Something on its way; `deliver_ms` does not fall within one direction of one connection.
  struct ToController {
    int64_t deliver_ms;
    int worker;  // index, or -1 for a client
    core::Input input;
  };
  struct ToWorker {
    int64_t deliver_ms;
    core::Command command;
  };
  struct Request {
    core::SubmitJob submit;
    bool acknowledged = false;
    std::string job_id;
  };

  core::Instant Now() const;
  int64_t Delay();
  void Second(bool calm);
  void Faults();
  void Clients();
  void SubmitSomething();
  void PokeAJob();
  void Heal();
  void RunController();
  void StepController(std::vector<ToController> batch);
  void Deliver(const core::Decision& decision);
  void HandleReply(const ToController& message, const core::Decision& decision);
  void KillController();
  void StartController();
  void SendFromWorker(int worker, core::Input input);
  void DeliverToWorkers();
  bool AllEnded() const;

  // Invariants.
  void Fail(const std::string& what);
  void CheckInvariants();
  void CheckJob(const core::Job& job);
  void CheckCheckpoint(const core::Job& job, const core::Attempt& attempt);
  void CheckAcknowledged();
  std::string Dump(const core::State& state) const;

  const WorldOptions options_;
  Random random_;
  Truth truth_;
  Disk disk_;
  std::unique_ptr<MemoryLog> log_;
  std::unique_ptr<store::Engine> engine_;  // null while the controller is down
  int64_t steady_ms_ = 0;
  int64_t wall_offset_ms_ = 1'700'000'000'000;
  int64_t controller_up_at_ms_ = 0;
  int64_t disk_full_until_ms_ = 0;
  std::vector<FakeWorker> workers_;
  std::vector<std::deque<ToController>> inbound_;  // per worker, plus one for clients
  std::vector<std::deque<ToWorker>> outbound_;     // per worker
  std::map<std::string, Request> requests_;
  int next_request_ = 1;
  std::map<std::string, std::string> ended_jobs_;  // id -> what it ended as
  std::string last_dump_;
  bool faults_ = true;
  Report report_;
};

}  // namespace nibble::sim
