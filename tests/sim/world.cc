// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/world.h"

#include <algorithm>

#include "base/strings.h"

namespace nibble::sim {
namespace {
constexpr int64_t kSecondMs = 1'000;
constexpr int kSnapshotEveryEvents = 200;
constexpr int kMaxBatch = 64;
}  // namespace

World::World(WorldOptions options) : options_(options), random_(options.seed) {
  log_ = std::make_unique<MemoryLog>(&disk_);
  const std::vector<std::pair<std::string, int>> plan = {
      {"main", 4}, {"main", 2}, {"main", 2}, {"small", 1}};
  for (size_t i = 0; i < plan.size(); ++i) {
    workers_.emplace_back("w-" + std::to_string(i), plan[i].first, plan[i].second, random_.Next(),
                          &truth_);
  }
  inbound_.resize(workers_.size() + 1);
  outbound_.resize(workers_.size());
}

core::Instant World::Now() const { return {wall_offset_ms_ + steady_ms_, steady_ms_}; }

int64_t World::Delay() {
  return !faults_ ? 0 : random_.Chance(0.9) ? random_.Range(0, 300) : random_.Range(0, 8'000);
}

Report World::Run() {
  StartController();
  for (int i = 0; i < options_.fault_seconds && report_.violation.empty(); ++i) Second(false);
  faults_ = false;
  for (int i = 0; i < options_.calm_seconds && report_.violation.empty(); ++i) {
    if (i % 60 == 0) Heal();
    Second(true);
    if (i > 300 && AllEnded()) break;
  }
  if (report_.violation.empty() && !AllEnded()) {
    for (const auto& [id, job] : engine_->state().jobs()) {
      if (!core::IsTerminal(job.state)) {
        std::string why;
        if (const auto told = engine_->controller().Explain(id, Now().wall_ms); told.ok()) {
          why = " (" + told->message + "; " + StrJoin(told->workers, "; ") + ")";
        }
        Fail("job " + id + " never ended" + why + ": " + core::ToJson(job).Dump());
        break;
      }
    }
  }
  report_.jobs = static_cast<int>(requests_.size());
  if (engine_ != nullptr) {
    for (const auto& [id, job] : engine_->state().jobs()) {
      ++report_.ended[std::string(core::Name(job.state))];
    }
  }
  report_.events = static_cast<int64_t>(disk_.events.size());
  return report_;
}

void World::Second(bool calm) {
  steady_ms_ += kSecondMs;
  if (faults_) {
    Faults();
    Clients();
  }
  for (size_t i = 0; i < workers_.size(); ++i) {
    workers_[i].Second(steady_ms_, calm, [&](core::Input input) {
      SendFromWorker(static_cast<int>(i), std::move(input));
    });
    if (workers_[i].violations() > 0) Fail("a device was given to a second live trainer");
  }
  RunController();
  DeliverToWorkers();
}

void World::Faults() {
  for (FakeWorker& worker : workers_) {
    if (!worker.up()) {
      if (random_.Chance(0.02)) worker.Start();
      continue;
    }
    if (random_.Chance(0.001)) worker.Crash();
    if (random_.Chance(0.0005)) worker.HostCrash();
    if (random_.Chance(0.002)) worker.KillATrainer();
    if (random_.Chance(0.002)) worker.Disconnect();
    if (random_.Chance(0.001)) worker.Pause(steady_ms_ + random_.Range(1'000, 200'000));
  }
  if (random_.Chance(0.002)) KillController();
  if (random_.Chance(0.001)) disk_full_until_ms_ = steady_ms_ + random_.Range(1'000, 60'000);
  disk_.full = steady_ms_ < disk_full_until_ms_;
  if (random_.Chance(0.0005)) wall_offset_ms_ += random_.Range(-3'600'000, 3'600'000);
}

void World::Clients() {
  if (random_.Chance(0.02)) SubmitSomething();
  if (random_.Chance(0.02)) PokeAJob();
  // Clients whose submit was not acknowledged try again with the same request id.
  for (auto& [id, request] : requests_) {
    if (request.acknowledged || !random_.Chance(0.1)) continue;
    inbound_.back().push_back({steady_ms_ + Delay(), -1, request.submit});
  }
}

void World::SubmitSomething() {
  core::SubmitJob submit;
  submit.request_id = "r-" + std::to_string(next_request_++);
  submit.actor = "alice";
  core::JobSpec& spec = submit.spec;
  spec.name = "job";
  spec.project = "sim";
  spec.user = "alice";
  spec.queue = random_.Chance(0.8) ? "main" : random_.Chance(0.9) ? "small" : "nowhere";
  spec.priority = static_cast<int>(random_.Range(0, 2));
  spec.resources.nodes = spec.queue == "main" ? static_cast<int>(random_.Range(1, 3)) : 1;
  spec.resources.slots_per_node = static_cast<int>(random_.Range(1, spec.queue == "main" ? 2 : 1));
  if (random_.Chance(0.02)) spec.resources.slots_per_node = 16;
  if (random_.Chance(0.2)) spec.time_limit_ms = random_.Range(30, 600) * kSecondMs;
  if (random_.Chance(0.2)) spec.stall_timeout_ms = random_.Range(20, 120) * kSecondMs;
  if (random_.Chance(0.2)) spec.start_timeout_ms = random_.Range(5, 120) * kSecondMs;
  spec.stop_grace_ms = random_.Range(1, 60) * kSecondMs;
  spec.retry.user = static_cast<int>(random_.Range(0, 3));
  spec.retry.infra_per_day = random_.Chance(0.1) ? 1 : 20;
  spec.retry.backoff_base_ms = 5'000;
  spec.spec_json = "{\"n\":" + submit.request_id.substr(2) + "}";
  submit.hold = random_.Chance(0.05);
  requests_[submit.request_id].submit = submit;
  inbound_.back().push_back({steady_ms_ + Delay(), -1, submit});
}

void World::PokeAJob() {
  if (engine_ == nullptr || engine_->state().jobs().empty()) return;
  const auto& jobs = engine_->state().jobs();
  auto job = jobs.begin();
  std::advance(job, random_.Range(0, static_cast<int64_t>(jobs.size()) - 1));
  const std::string id = job->first;
  const std::string worker =
      workers_[static_cast<size_t>(random_.Range(0, int64_t(workers_.size()) - 1))].id();
  core::Input input;
  switch (random_.Range(0, 7)) {
    case 0:
      input =
          core::CancelJob{id, random_.Chance(0.3) ? core::StopMode::kKill : core::StopMode::kSave,
                          "c-" + std::to_string(next_request_++), "bob"};
      break;
    case 1:
      input = core::PauseJob{id, "bob"};
      break;
    case 2:
    case 3:
      input = core::ResumeJob{id, "bob"};
      break;
    case 4:
      input = core::RequeueJob{id, "bob"};
      break;
    case 5:
      input = core::UpdateJob{id, static_cast<int>(random_.Range(0, 5)), std::nullopt, "bob"};
      break;
    case 6:
      input = core::DrainWorker{worker, "maintenance", "bob",
                                random_.Chance(0.5) ? Now().wall_ms + 30'000 : 0};
      break;
    default:
      input = core::UndrainWorker{worker, "bob"};
  }
  inbound_.back().push_back({steady_ms_ + Delay(), -1, std::move(input)});
}

// Once a virtual minute after the faults: bring back what is down, resume and undrain everything,
// and cancel what can never run.
void World::Heal() {
  disk_.full = false;
  if (engine_ == nullptr) controller_up_at_ms_ = steady_ms_;
  for (FakeWorker& worker : workers_) {
    worker.Start();
    worker.Pause(0);
    inbound_.back().push_back({steady_ms_, -1, core::UndrainWorker{worker.id(), "bob"}});
  }
  for (auto& [id, request] : requests_) {
    if (!request.acknowledged) inbound_.back().push_back({steady_ms_, -1, request.submit});
  }
  if (engine_ == nullptr) return;
  for (const auto& [id, job] : engine_->state().jobs()) {
    if (job.state == core::JobState::kHeld) {
      inbound_.back().push_back({steady_ms_, -1, core::ResumeJob{id, "bob"}});
    }
    const auto why = engine_->controller().Explain(id, Now().wall_ms);
    if (why.ok() && why->reason <= core::PendingReason::kMemoryEstimateTooLarge &&
        why->reason >= core::PendingReason::kNoMatchingPool) {
      inbound_.back().push_back(
          {steady_ms_, -1, core::CancelJob{id, core::StopMode::kSave, "", "bob"}});
    }
  }
}

void World::SendFromWorker(int worker, core::Input input) {
  auto& queue = inbound_[static_cast<size_t>(worker)];
  if (faults_ && random_.Chance(0.02)) return;  // lost
  const int64_t after_ms = queue.empty() ? 0 : queue.back().deliver_ms;
  const int64_t deliver_ms = std::max(after_ms, steady_ms_ + Delay());
  queue.push_back({deliver_ms, worker, input});
  if (faults_ && random_.Chance(0.02)) queue.push_back({deliver_ms, worker, std::move(input)});
}

void World::DeliverToWorkers() {
  for (size_t i = 0; i < workers_.size(); ++i) {
    while (!outbound_[i].empty() && outbound_[i].front().deliver_ms <= steady_ms_ &&
           !workers_[i].paused(steady_ms_)) {
      workers_[i].Receive(outbound_[i].front().command, steady_ms_);
      outbound_[i].pop_front();
    }
  }
}

void World::RunController() {
  if (engine_ == nullptr) {
    if (steady_ms_ < controller_up_at_ms_) return;
    StartController();
  }
  std::vector<ToController> batch;
  for (auto& queue : inbound_) {
    while (!queue.empty() && queue.front().deliver_ms <= steady_ms_) {
      batch.push_back(std::move(queue.front()));
      queue.pop_front();
      if (static_cast<int>(batch.size()) < kMaxBatch - 1 && !random_.Chance(0.2)) continue;
      StepController(std::exchange(batch, {}));
      if (engine_ == nullptr) return;
    }
  }
  batch.push_back({steady_ms_, -1, core::Tick{}});
  StepController(std::move(batch));
}

void World::StepController(std::vector<ToController> batch) {
  std::vector<core::Input> inputs;
  for (const ToController& message : batch) inputs.push_back(message.input);
  const std::vector<core::Decision> decisions = engine_->Step(inputs, Now());
  ++report_.steps;
  const bool changed = std::any_of(decisions.begin(), decisions.end(),
                                   [](const auto& decision) { return !decision.events.empty(); });
  if (changed || disk_.full) CheckInvariants();
  // Killed after the events are durable and before anyone heard of them.
  if (faults_ && random_.Chance(0.0005)) return KillController();
  for (size_t i = 0; i < decisions.size(); ++i) {
    Deliver(decisions[i]);
    if (i < batch.size()) HandleReply(batch[i], decisions[i]);
  }
}

void World::Deliver(const core::Decision& decision) {
  for (const core::Command& command : decision.commands) {
    for (size_t i = 0; i < workers_.size(); ++i) {
      if (workers_[i].id() != command.worker_id) continue;
      if (faults_ && random_.Chance(0.02)) continue;  // lost
      auto& queue = outbound_[i];
      const int64_t after_ms = queue.empty() ? 0 : queue.back().deliver_ms;
      const int64_t deliver_ms = std::max(after_ms, steady_ms_ + Delay());
      queue.push_back({deliver_ms, command});
      if (faults_ && random_.Chance(0.02)) queue.push_back({deliver_ms, command});
    }
  }
}

void World::HandleReply(const ToController& message, const core::Decision& decision) {
  if (faults_ && random_.Chance(0.02)) return;  // the reply is lost
  if (message.worker >= 0) {
    FakeWorker& worker = workers_[static_cast<size_t>(message.worker)];
    const auto* beat = std::get_if<core::Heartbeat>(&message.input);
    const auto* registration = std::get_if<core::RegisterWorker>(&message.input);
    const std::string session = beat != nullptr           ? beat->session
                                : registration != nullptr ? registration->session
                                                          : "";
    if (session == worker.session()) worker.Answer(decision.reply);
    return;
  }
  if (const auto* submit = std::get_if<core::SubmitJob>(&message.input)) {
    Request& request = requests_[submit->request_id];
    if (!decision.reply.ok()) return;
    if (request.acknowledged && request.job_id != decision.job_id) {
      Fail("request " + submit->request_id + " made two jobs");
    }
    request.acknowledged = true;
    request.job_id = decision.job_id;
  }
}

void World::KillController() {
  if (engine_ == nullptr) return;
  ++report_.controller_kills;
  last_dump_ = Dump(engine_->state());
  engine_.reset();
  controller_up_at_ms_ = steady_ms_ + random_.Range(1'000, 200'000);
  for (FakeWorker& worker : workers_) worker.Disconnect();
  for (auto& queue : inbound_) queue.clear();
  for (auto& queue : outbound_) queue.clear();
}

void World::StartController() {
  store::EngineOptions options;
  options.snapshot_every_events = kSnapshotEveryEvents;
  options.max_batch = kMaxBatch;
  auto engine = store::Engine::Open(options, log_.get(), Now());
  if (!engine.ok()) return Fail("the log cannot be loaded: " + engine.status().ToString());
  engine_ = std::move(engine).value();
  if (!last_dump_.empty() && Dump(engine_->state()) != last_dump_) {
    return Fail("replay reached another state than the one that was running");
  }
  CheckAcknowledged();
}

bool World::AllEnded() const {
  if (engine_ == nullptr) return false;
  for (const auto& [id, request] : requests_) {
    if (!request.acknowledged) return false;
  }
  const auto& jobs = engine_->state().jobs();
  return std::all_of(jobs.begin(), jobs.end(),
                     [](const auto& entry) { return core::IsTerminal(entry.second.state); });
}

}  // namespace nibble::sim
