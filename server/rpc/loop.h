// SPDX-License-Identifier: Apache-2.0
//
// Loop: the scheduler thread. It alone owns the engine (core + durable log) and serves one bounded
// queue of requests: decide in the core, make durable (one fsync for everything queued), act,
// reply.
//
// Thread-safety: Post and Stop are thread-safe; everything handed in runs on the loop's thread, one
// at a time. Ownership: owns the engine; the log and the observer outlive
// it. Invariants: a reply is given exactly once for each accepted request, also when the loop
// stops; an expired request changes nothing; the observer sees decisions only after they are
// durable. Limits: kMaxQueuedRequests; each Step takes at most EngineOptions::max_batch inputs.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/status.h"
#include "server/core/controller.h"
#include "server/store/engine.h"

namespace nibble::rpc {

inline constexpr size_t kMaxQueuedRequests = 8192;
inline constexpr int kMaxInputsPerRequest = 64;

// What a request may look at while it runs on the loop's thread.
struct View {
  const core::Controller& controller;
  const core::State& state;
  core::Instant now;
};

struct LoopRequest {
  // Builds the inputs to decide on; an error is the reply. Absent: nothing to decide, only a reply
  // (a read). At most kMaxInputsPerRequest inputs.
  std::function<Result<std::vector<core::Input>>(const View&)> make;
  // The decisions on the inputs in order (empty for a read), or why there are none.
  std::function<void(const Status&, const std::vector<core::Decision>&, const View&)> reply;
  int64_t deadline_steady_ms = 0;  // not begun after this; 0 = whenever
};

class Loop {
 public:
  // Called on the loop's thread. OnDecision: a durable decision of any input or tick. OnTurn: after
  // each round of requests, and at least every `tick_ms`.
  class Observer {
   public:
    virtual ~Observer() = default;
    virtual void OnDecision(const core::Decision& decision, const View& view) = 0;
    virtual void OnTurn(const View& view, const Status& log_health) = 0;
    virtual void OnStep(double seconds, size_t events) = 0;
  };

  Loop(std::unique_ptr<store::Engine> engine, Observer* observer, const Clock& clock,
       std::chrono::milliseconds tick, int max_batch);
  ~Loop();  // as Stop

  void Start();
  // False when the queue is full or the loop has stopped; the request is then dropped unanswered.
  bool Post(LoopRequest request);
  // Answers what is queued with UNAVAILABLE and ends the thread.
  void Stop();

  size_t queued() const { return queue_.size(); }

 private:
  void Run();
  void Turn(std::vector<LoopRequest> requests);
  View MakeView() const;

  const std::unique_ptr<store::Engine> engine_;
  Observer* const observer_;
  const Clock& clock_;
  const std::chrono::milliseconds tick_;
  const int max_batch_;
  BoundedQueue<LoopRequest> queue_;
  std::atomic<bool> stopping_ = false;
  int64_t last_tick_ms_ = 0;  // loop's thread
  std::thread thread_;
};

}  // namespace nibble::rpc
