// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/session_table.h"

#include <utility>

#include "base/json.h"

namespace nibble::rpc {

void SessionTable::Prepare(const std::string& session, std::shared_ptr<Outbox> outbox) {
  MutexLock lock(mutex_);
  pending_[session].outbox = std::move(outbox);
}

void SessionTable::Accept(const std::string& worker_id, const std::string& session,
                          WorkerFacts facts, v1::ControllerMessage registered) {
  std::shared_ptr<Outbox> older;
  {
    // The lock is held while sending, so that nothing overtakes what was held back; an Outbox only
    // queues.
    MutexLock lock(mutex_);
    const auto found = pending_.find(session);
    if (found == pending_.end()) return;  // the stream broke meanwhile
    Pending pending = std::move(found->second);
    pending_.erase(found);
    pending.outbox->Send(std::move(registered));
    for (v1::ControllerMessage& message : pending.held) pending.outbox->Send(std::move(message));
    Entry& entry = workers_[worker_id];
    older = std::exchange(entry.outbox, std::move(pending.outbox));
    entry.facts = std::move(facts);
    entry.facts.session = session;
  }
  if (older != nullptr) older->Close(AbortedError("the worker opened a newer session"));
}

void SessionTable::Close(const std::string& worker_id, const std::string& session) {
  std::shared_ptr<Outbox> closed;  // released after the lock
  MutexLock lock(mutex_);
  const auto waiting = pending_.find(session);
  if (waiting != pending_.end()) {
    closed = std::move(waiting->second.outbox);
    pending_.erase(waiting);
  }
  const auto found = workers_.find(worker_id);
  if (found == workers_.end() || found->second.facts.session != session) return;
  closed = std::exchange(found->second.outbox, nullptr);
  found->second.facts.session.clear();
}

void SessionTable::Heard(const std::string& worker_id, int64_t wall_ms, int64_t steady_ms,
                         int64_t disk_free_bytes) {
  MutexLock lock(mutex_);
  const auto found = workers_.find(worker_id);
  if (found == workers_.end()) return;
  found->second.facts.last_heard_wall_ms = wall_ms;
  found->second.facts.last_heard_steady_ms = steady_ms;
  found->second.facts.disk_free_bytes = disk_free_bytes;
}

std::shared_ptr<Outbox> SessionTable::OutboxOf(const std::string& worker_id,
                                               const std::string& session) const {
  MutexLock lock(mutex_);
  const auto found = workers_.find(worker_id);
  if (found == workers_.end() || found->second.facts.session != session) return nullptr;
  return found->second.outbox;
}

void SessionTable::Send(const std::string& worker_id, const std::string& session,
                        v1::ControllerMessage message) {
  {
    MutexLock lock(mutex_);
    const auto waiting = pending_.find(session);
    if (waiting != pending_.end()) {
      if (waiting->second.held.size() < kMaxOutbox) {
        waiting->second.held.push_back(std::move(message));
      }
      return;
    }
  }
  if (const auto outbox = OutboxOf(worker_id, session)) outbox->Send(std::move(message));
}

void SessionTable::Kick(const std::string& worker_id, const std::string& session,
                        const std::string& why) {
  if (const auto outbox = OutboxOf(worker_id, session)) outbox->Close(AbortedError(why));
}

void SessionTable::KickAll(const std::string& why) {
  std::vector<std::shared_ptr<Outbox>> all;
  {
    MutexLock lock(mutex_);
    for (auto& [worker_id, entry] : workers_) {
      if (entry.outbox != nullptr) all.push_back(entry.outbox);
    }
  }
  for (const auto& outbox : all) outbox->Close(AbortedError(why));
}

std::optional<WorkerFacts> SessionTable::Find(const std::string& worker_id) const {
  MutexLock lock(mutex_);
  const auto found = workers_.find(worker_id);
  if (found == workers_.end()) return std::nullopt;
  return found->second.facts;
}

std::map<std::string, WorkerFacts> SessionTable::All() const {
  std::map<std::string, WorkerFacts> all;
  MutexLock lock(mutex_);
  for (const auto& [worker_id, entry] : workers_) all.emplace(worker_id, entry.facts);
  return all;
}

std::string ServiceDiscoveryJson(const std::map<std::string, WorkerFacts>& workers) {
  Json list = Json::Array();
  for (const auto& [worker_id, facts] : workers) {
    if (facts.http_address.empty()) continue;
    list.Append(
        Json::Object({{"targets", Json::Array({facts.http_address})},
                      {"labels", Json::Object({{"worker", worker_id}, {"pool", facts.pool}})}}));
  }
  return list.Dump();
}

}  // namespace nibble::rpc
