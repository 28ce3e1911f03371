// SPDX-License-Identifier: Apache-2.0
//
// Measures the durable paths of the controller: submits per second (one per fsync, and batched),
// restart time with many jobs, the scheduling cycle with many queued jobs, metric ingest.
// Usage: store-bench [DIRECTORY]; the directory's disk is what is measured.
#include <chrono>
#include <cstdio>

#include "base/files.h"
#include "base/strings.h"
#include "server/store/engine.h"
#include "server/store/metric_store.h"

namespace nibble::store {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kJobs = 10'000;
constexpr int kBatch = 64;
constexpr int kUnbatchedJobs = 1'000;
constexpr int kWorkers = 125;
constexpr int kDevices = 8;
constexpr int kCycles = 200;
constexpr int kPointBatches = 200;
constexpr int kPointsPerBatch = 500;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

core::Instant At(int64_t ms) { return {1'700'000'000'000 + ms, ms}; }

core::SubmitJob Submit(int i) {
  core::SubmitJob submit;
  submit.spec.name = "job";
  submit.spec.project = "bench";
  submit.spec.spec_json = "{\"text\":\"" + std::string(1'500, 'x') + "\"}";
  submit.request_id = "r-" + std::to_string(i);
  submit.actor = "bench";
  return submit;
}

core::RegisterWorker Worker(int i) {
  core::RegisterWorker input;
  input.worker.id = "w-" + std::to_string(i);
  input.session = "s";
  for (int d = 0; d < kDevices; ++d) {
    core::Device device;
    device.id = "cuda" + std::to_string(d);
    device.kind = core::DeviceKind::kCuda;
    input.worker.devices.push_back(std::move(device));
  }
  return input;
}

Status Submits(const std::string& directory) {
  ASSIGN_OR_RETURN(auto log, SqliteEventLog::Open({directory}));
  EngineOptions options;
  options.snapshot_every_events = 10 * kJobs;  // so that the first restart replays the whole log
  ASSIGN_OR_RETURN(auto engine, Engine::Open(options, log.get(), At(0)));
  auto start = Clock::now();
  int job = 0;
  for (; job < kUnbatchedJobs; ++job)
    RETURN_IF_ERROR(engine->Step({Submit(job)}, At(job))[0].reply);
  std::printf("submits, one fsync each:      %8.0f /s\n", kUnbatchedJobs / SecondsSince(start));
  start = Clock::now();
  while (job < kJobs) {
    std::vector<core::Input> batch;
    for (int i = 0; i < kBatch && job < kJobs; ++i) batch.emplace_back(Submit(job++));
    for (const auto& decision : engine->Step(batch, At(job))) RETURN_IF_ERROR(decision.reply);
  }
  std::printf("submits, %d to an fsync:      %8.0f /s\n", kBatch,
              (kJobs - kUnbatchedJobs) / SecondsSince(start));
  return OkStatus();
}

Status Restart(const std::string& directory, const char* what, bool save) {
  ASSIGN_OR_RETURN(auto log, SqliteEventLog::Open({directory}));
  const auto start = Clock::now();
  ASSIGN_OR_RETURN(auto engine, Engine::Open({}, log.get(), At(0)));
  std::printf("restart, %d jobs, %s: %6.2f s\n", kJobs, what, SecondsSince(start));
  if (!save) return OkStatus();
  core::State whole = engine->state();
  return log->SaveSnapshot(whole.Changes());
}

// Half of the jobs ask for more than is free, so that the queue has a blocked head.
Status Cycle() {
  core::Controller controller({.max_active_jobs = 2 * kJobs}, core::State(), At(0));
  for (int i = 0; i < kWorkers; ++i) controller.Handle(Worker(i), At(0));
  controller.Commit();
  for (int i = 0; i < kJobs; ++i) {
    core::SubmitJob submit = Submit(i);
    submit.spec.spec_json.clear();
    submit.spec.resources.slots_per_node = i % 2 == 0 ? 1 : kDevices;
    RETURN_IF_ERROR(controller.Handle(submit, At(i)).reply);
    controller.Commit();
  }
  auto start = Clock::now();
  const auto first = controller.Handle(core::Tick{}, At(kJobs));
  controller.Commit();
  std::printf("first cycle, %d x %d devices: %6.1f ms, %zu placed\n", kJobs, kWorkers * kDevices,
              1e3 * SecondsSince(start), first.events.size());
  double worst = 0;
  for (int i = 0; i < kCycles; ++i) {
    start = Clock::now();
    controller.Handle(core::Tick{}, At(kJobs + i));
    controller.Commit();
    worst = std::max(worst, SecondsSince(start));
  }
  std::printf("later cycles, slowest of %d:  %8.2f ms\n", kCycles, 1e3 * worst);
  return OkStatus();
}

Status Ingest(const std::string& directory) {
  ASSIGN_OR_RETURN(auto store, MetricStore::Open(directory));
  const auto start = Clock::now();
  int64_t step = 0;
  for (int i = 0; i < kPointBatches; ++i) {
    PointBatch batch;
    for (int p = 0; p < kPointsPerBatch; ++p) {
      StepPoint point;
      point.step = ++step;
      batch.steps.push_back(point);
    }
    RETURN_IF_ERROR(store->Append({"j-1", 1, 0}, batch, i + 1).status());
  }
  RETURN_IF_ERROR(store->Sync());
  std::printf("metric points:                %8.0f /s\n", double(step) / SecondsSince(start));
  const auto read = Clock::now();
  ASSIGN_OR_RETURN(const auto curve, store->Steps("j-1", {.max_points = 1'000}));
  std::printf("%lld points read as %zu:     %8.1f ms\n", static_cast<long long>(step), curve.size(),
              1e3 * SecondsSince(read));
  return OkStatus();
}

Status Run(const std::string& directory) {
  RETURN_IF_ERROR(Submits(directory));
  RETURN_IF_ERROR(Restart(directory, "from the log     ", true));
  RETURN_IF_ERROR(Restart(directory, "from the snapshot", false));
  RETURN_IF_ERROR(Cycle());
  return Ingest(JoinPath(directory, "metrics"));
}

}  // namespace
}  // namespace nibble::store

int main(int argc, char** argv) {
  const auto directory = argc > 1 ? nibble::Result<std::string>(std::string(argv[1]))
                                  : nibble::MakeTempDirectory("store-bench");
  const nibble::Status status =
      directory.ok() ? nibble::store::Run(*directory) : directory.status();
  if (!status.ok()) std::fprintf(stderr, "store-bench: %s\n", status.ToString().c_str());
  if (argc <= 1 && directory.ok() && !nibble::RemoveTree(*directory).ok()) return 1;
  return status.ok() ? 0 : 1;
}
