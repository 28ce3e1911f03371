// SPDX-License-Identifier: Apache-2.0
#include "server/core/state.h"

#include <algorithm>

#include "base/sha256.h"
#include "base/strings.h"
#include "server/core/json_fields.h"

namespace nibble::core {

const Job* State::FindJob(std::string_view id) const {
  const auto found = jobs_.find(id);
  return found == jobs_.end() ? nullptr : &found->second;
}

const Job* State::FindJobByIdOrName(std::string_view id_or_name) const {
  if (const Job* job = FindJob(id_or_name)) return job;
  const auto found = names_.find(id_or_name);
  if (found == names_.end() || found->second.empty()) return nullptr;
  return FindJob(found->second.rbegin()->second);
}

const Worker* State::FindWorker(std::string_view id) const {
  const auto found = workers_.find(id);
  return found == workers_.end() ? nullptr : &found->second;
}

const RequestRecord* State::FindRequest(std::string_view request_id) const {
  const auto found = requests_.find(request_id);
  return found == requests_.end() ? nullptr : &found->second;
}

std::vector<std::string> State::JobsOnWorker(std::string_view worker_id) const {
  std::set<std::string> ids;
  const auto found = held_devices_.find(worker_id);
  if (found != held_devices_.end()) {
    for (const auto& [device, job_id] : found->second) ids.insert(job_id);
  }
  return {ids.begin(), ids.end()};
}

std::string State::DeviceHolder(std::string_view worker_id, std::string_view device_id) const {
  const auto worker = held_devices_.find(worker_id);
  if (worker == held_devices_.end()) return "";
  const auto device = worker->second.find(device_id);
  return device == worker->second.end() ? "" : device->second;
}

void State::Commit() { undo_ = Undo(); }

void State::Rollback() {
  if (!undo_.active) return;
  Undo undo = std::move(undo_);
  undo_ = Undo();
  for (auto& [id, job] : undo.jobs) StoreJob(id, std::move(job));
  for (auto& [id, worker] : undo.workers) {
    if (worker) {
      workers_[id] = std::move(*worker);
    } else {
      workers_.erase(id);
    }
  }
  for (const std::string& request : undo.requests) requests_.erase(request);
  counters_ = undo.counters;
}

void State::Index(const Job& job, bool add) {
  if (IsQueued(job.state)) {
    const QueueKey key{job.spec.priority, job.submitted_ms, job.number, job.id};
    Queue& queue = queues_[job.spec.queue];
    if (add) {
      queue.insert(key);
    } else {
      queue.erase(key);
      if (queue.empty()) queues_.erase(job.spec.queue);
    }
  }
  if (const Attempt* attempt = job.live_attempt()) {
    if (add) {
      live_jobs_.insert(job.id);
    } else {
      live_jobs_.erase(job.id);
    }
    for (const Share& share : attempt->shares) {
      if (share.phase == SharePhase::kEnded) continue;
      auto& held = held_devices_[share.worker_id];
      for (const std::string& device : share.devices) {
        if (add) {
          held[device] = job.id;
        } else if (const auto holder = held.find(device);
                   holder != held.end() && holder->second == job.id) {
          held.erase(holder);  // a rollback may have given it back to its former holder already
        }
      }
    }
  }
  auto& numbers = names_[job.spec.name];
  if (add) {
    numbers[job.number] = job.id;
  } else {
    numbers.erase(job.number);
    if (numbers.empty()) names_.erase(job.spec.name);
  }
}

void State::StoreJob(const std::string& id, std::optional<Job> job) {
  const auto found = jobs_.find(id);
  if (found != jobs_.end()) Index(found->second, false);
  changed_jobs_.insert(id);
  if (!job) {
    if (found != jobs_.end()) jobs_.erase(found);
    return;
  }
  Index(*job, true);
  jobs_.insert_or_assign(id, std::move(*job));
}

void State::PutJob(Job job) {
  const std::string id = job.id;
  if (!undo_.jobs.contains(id)) {
    const Job* old = FindJob(id);
    undo_.jobs.emplace(id, old == nullptr ? std::nullopt : std::optional<Job>(*old));
  }
  StoreJob(id, std::move(job));
}

void State::PutWorker(Worker worker) {
  const std::string id = worker.id;
  if (!undo_.workers.contains(id)) {
    const Worker* old = FindWorker(id);
    undo_.workers.emplace(id, old == nullptr ? std::nullopt : std::optional<Worker>(*old));
  }
  changed_workers_.insert(id);
  workers_.insert_or_assign(id, std::move(worker));
}

void State::RememberRequest(const std::string& request_id, const std::string& job_id,
                            const std::string& body_hash) {
  if (request_id.empty()) return;
  if (requests_.emplace(request_id, RequestRecord{job_id, body_hash}).second) {
    undo_.requests.push_back(request_id);
  }
}

SnapshotRows State::Changes() const {
  NIBBLE_CHECK(!undo_.active);
  SnapshotRows rows;
  rows.sequence = counters_.last_sequence;
  for (const std::string& id : changed_jobs_) {
    if (const Job* job = FindJob(id)) rows.jobs.emplace_back(id, ToJson(*job).Dump());
  }
  for (const std::string& id : changed_workers_) {
    if (const Worker* worker = FindWorker(id))
      rows.workers.emplace_back(id, ToJson(*worker).Dump());
  }
  rows.counters = Json::Object({{"v", kEventFormat},
                                {"next_job_number", counters_.next_job_number},
                                {"next_epoch", counters_.next_epoch},
                                {"last_sequence", counters_.last_sequence}})
                      .Dump();
  return rows;
}

void State::ForgetChanges() {
  NIBBLE_CHECK(!undo_.active);
  changed_jobs_.clear();
  changed_workers_.clear();
}

Result<State> State::FromSnapshot(const SnapshotRows& rows) {
  State state;
  if (rows.counters.empty()) return state;
  const auto damaged = [](const std::string& row, const Status& status) {
    return DataLossError("snapshot row " + row + " is damaged: " + status.message());
  };
  const Result<Json> counters = Json::Parse(rows.counters);
  if (!counters.ok()) return damaged("counters", counters.status());
  FieldReader fields("counters", *counters);
  int format = 0;
  fields.Get("v", format);
  fields.Get("next_job_number", state.counters_.next_job_number);
  fields.Get("next_epoch", state.counters_.next_epoch);
  fields.Get("last_sequence", state.counters_.last_sequence);
  if (!fields.status().ok()) return damaged("counters", fields.status());
  if (format > kEventFormat) {
    return FailedPreconditionError(
        StrFormat("the snapshot has format %d, this build reads up to %d: use a newer build",
                  format, kEventFormat));
  }
  for (const auto& [id, text] : rows.workers) {
    const Result<Json> json = Json::Parse(text);
    if (!json.ok()) return damaged("worker " + id, json.status());
    Result<Worker> worker = WorkerFromJson(*json);
    if (!worker.ok()) return damaged("worker " + id, worker.status());
    state.workers_.insert_or_assign(id, std::move(worker).value());
  }
  for (const auto& [id, text] : rows.jobs) {
    const Result<Json> json = Json::Parse(text);
    if (!json.ok()) return damaged("job " + id, json.status());
    Result<Job> job = JobFromJson(*json);
    if (!job.ok()) return damaged("job " + id, job.status());
    state.RememberRequest(job->request_id, id, job->body_hash);
    for (const RequestUse& use : job->cancel_requests) {
      state.RememberRequest(use.request_id, id, use.body_hash);
    }
    if (!IsTerminal(job->state)) ++state.counters_.active_jobs;
    state.StoreJob(id, std::move(job).value());
  }
  state.changed_jobs_.clear();
  state.Commit();
  return state;
}

std::string CancelBodyHash(std::string_view job_id, StopMode mode) {
  return Sha256Hex("cancel\n" + std::string(job_id) + "\n" + std::string(Name(mode)));
}

}  // namespace nibble::core
