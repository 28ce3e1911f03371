// SPDX-License-Identifier: Apache-2.0
#include "server/store/engine.h"

#include "base/log.h"

namespace nibble::store {

Result<std::unique_ptr<Engine>> Engine::Open(EngineOptions options, EventLog* log,
                                             core::Instant now) {
  ASSIGN_OR_RETURN(core::State state, log->Load());
  std::unique_ptr<Engine> engine(new Engine(options, log));
  engine->snapshot_sequence_ = state.last_sequence();
  engine->controller_ = std::make_unique<core::Controller>(options.core, std::move(state), now);
  return engine;
}

std::vector<core::Decision> Engine::Step(const std::vector<core::Input>& inputs,
                                         core::Instant now) {
  NIBBLE_CHECK(static_cast<int>(inputs.size()) <= options_.max_batch);
  std::vector<core::Decision> decisions;
  decisions.reserve(inputs.size() + 1);
  for (const core::Input& input : inputs) decisions.push_back(controller_->Handle(input, now));
  if (controller_->NeedsTick()) decisions.push_back(controller_->Handle(core::Tick{}, now));

  std::vector<core::Event> events;
  for (const core::Decision& decision : decisions) {
    events.insert(events.end(), decision.events.begin(), decision.events.end());
  }
  const Status appended = log_->Append(events);
  if (appended.ok()) {
    controller_->Commit();
    if (!events.empty()) health_ = OkStatus();
    MaybeSnapshot(now.wall_ms);
    return decisions;
  }
  if (health_.ok()) LogError("the log took no events", {{"status", appended.ToString()}});
  health_ = appended;
  controller_->Rollback();
  // From the first decision with events on, each may build on what is undone and is withdrawn;
  // a refusal stays that refusal.
  bool withdrawn = false;
  for (core::Decision& decision : decisions) {
    withdrawn = withdrawn || !decision.events.empty();
    if (!withdrawn) continue;
    const Status reply = decision.reply.ok() ? appended : decision.reply;
    decision = core::Decision();
    decision.reply = reply;
  }
  return decisions;
}

void Engine::MaybeSnapshot(int64_t wall_ms) {
  const int64_t sequence = state().last_sequence();
  if (sequence - snapshot_sequence_ < options_.snapshot_every_events) return;
  snapshot_sequence_ = sequence;
  const Status saved = log_->SaveSnapshot(controller_->Changes());
  if (!saved.ok()) {
    LogWarning("no snapshot was written; restarts take longer", {{"status", saved.ToString()}});
    return;
  }
  controller_->ForgetChanges();
  const Result<int64_t> removed = log_->Compact(wall_ms);
  if (!removed.ok()) LogWarning("no compaction", {{"status", removed.status().ToString()}});
}

}  // namespace nibble::store
