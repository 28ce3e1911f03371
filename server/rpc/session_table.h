// SPDX-License-Identifier: Apache-2.0
//
// SessionTable: the open sessions of workers, and what a worker said of itself when it registered.
//
// Thread-safety: thread-safe. Ownership: shares each Outbox with its stream. Facts of a worker stay
// after its session closed (for /sd and `nodes`) and are forgotten when the controller restarts.
// Invariant: one present session per worker; a message for an older one is dropped.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "nibble/v1/worker.pb.h"

namespace nibble::rpc {

// Messages waiting to be written to one worker. Commands must not be lost, so a worker that reads
// too slowly loses its session instead and comes back with its inventory.
inline constexpr size_t kMaxOutbox = 1024;

// The sending half of one session.
class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void Send(v1::ControllerMessage message) = 0;
  // Ends the stream; with ABORTED the worker shall register again.
  virtual void Close(const Status& why) = 0;
};

struct WorkerFacts {
  std::string session;  // "" = not connected
  std::vector<v1::Device> devices;
  std::string http_address;
  std::string pool;
  int64_t last_heard_wall_ms = 0;
  int64_t last_heard_steady_ms = 0;
  int64_t disk_free_bytes = 0;
};

class SessionTable {
 public:
  // A session that registers: what is sent to it is held back until Accept.
  void Prepare(const std::string& session, std::shared_ptr<Outbox> outbox) EXCLUDES(mutex_);
  // The registration is durable: makes the session the worker's present one (an older one is
  // closed) and sends `registered`, then what was held back.
  void Accept(const std::string& worker_id, const std::string& session, WorkerFacts facts,
              v1::ControllerMessage registered) EXCLUDES(mutex_);
  // The registration was refused, or the stream broke: forgets the session.
  void Close(const std::string& worker_id, const std::string& session) EXCLUDES(mutex_);
  void Heard(const std::string& worker_id, int64_t wall_ms, int64_t steady_ms,
             int64_t disk_free_bytes) EXCLUDES(mutex_);
  void Send(const std::string& worker_id, const std::string& session, v1::ControllerMessage message)
      EXCLUDES(mutex_);
  // Ends the session with ABORTED.
  void Kick(const std::string& worker_id, const std::string& session, const std::string& why)
      EXCLUDES(mutex_);
  void KickAll(const std::string& why) EXCLUDES(mutex_);

  std::optional<WorkerFacts> Find(const std::string& worker_id) const EXCLUDES(mutex_);
  std::map<std::string, WorkerFacts> All() const EXCLUDES(mutex_);

 private:
  struct Entry {
    WorkerFacts facts;
    std::shared_ptr<Outbox> outbox;
  };
  struct Pending {
    std::shared_ptr<Outbox> outbox;
    std::vector<v1::ControllerMessage> held;
  };
  std::shared_ptr<Outbox> OutboxOf(const std::string& worker_id, const std::string& session) const
      EXCLUDES(mutex_);

  mutable Mutex mutex_;
  std::map<std::string, Entry> workers_ GUARDED_BY(mutex_);
  std::map<std::string, Pending> pending_ GUARDED_BY(mutex_);  // by session
};

// Prometheus HTTP service discovery of the workers that serve metrics.
std::string ServiceDiscoveryJson(const std::map<std::string, WorkerFacts>& workers);

}  // namespace nibble::rpc
