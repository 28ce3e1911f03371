// SPDX-License-Identifier: Apache-2.0
//
// Engine: a Controller on an EventLog. Turns batches of inputs into durable decisions.
//
// Purpose: the one place where "persist, then act" is written down; the controller program and the
// simulator both use it. Thread-safety: one thread. Ownership: owns the controller, borrows the
// log. Invariants: a decision returned by Step is durable, or its reply is the failure and it has
// no commands; after a failed append the state is what the log holds.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.h"
#include "server/core/controller.h"
#include "server/store/event_log.h"

namespace nibble::store {

struct EngineOptions {
  core::Options core;
  int snapshot_every_events = 10'000;
  int max_batch = 256;  // inputs made durable by one fsync
};

class Engine {
 public:
  // Loads the state. `log` outlives the engine.
  static Result<std::unique_ptr<Engine>> Open(EngineOptions options, EventLog* log,
                                              core::Instant now);

  // Handles up to max_batch inputs (the rest is ignored: precondition) and, when the core asks for
  // it, a Tick after them; one durable append for all. Returns one decision per input, in order,
  // plus one more for the Tick when it did something. Send the commands of each decision, publish
  // its events, then answer its caller.
  std::vector<core::Decision> Step(const std::vector<core::Input>& inputs, core::Instant now);

  // Read access; valid on the engine's thread between Steps.
  const core::Controller& controller() const { return *controller_; }
  const core::State& state() const { return controller_->state(); }

  // OK, or why the last append failed: shown by /readyz. Reads go on.
  const Status& health() const { return health_; }

 private:
  Engine(EngineOptions options, EventLog* log) : options_(options), log_(log) {}
  void MaybeSnapshot(int64_t wall_ms);

  EngineOptions options_;
  EventLog* log_;
  std::unique_ptr<core::Controller> controller_;
  Status health_;
  int64_t snapshot_sequence_ = 0;
};

}  // namespace nibble::store
