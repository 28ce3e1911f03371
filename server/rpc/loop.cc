// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/loop.h"

#include <algorithm>
#include <utility>

namespace nibble::rpc {
namespace {

constexpr size_t kMaxRequestsPerTurn = 128;

// Where the decisions of one request lie among those of a Step.
struct Slice {
  LoopRequest request;
  Status failure;  // of `make`
  size_t begin = 0;
  size_t count = 0;
};

}  // namespace

Loop::Loop(std::unique_ptr<store::Engine> engine, Observer* observer, const Clock& clock,
           std::chrono::milliseconds tick, int max_batch)
    : engine_(std::move(engine)),
      observer_(observer),
      clock_(clock),
      tick_(tick),
      max_batch_(max_batch),
      queue_(kMaxQueuedRequests) {}

Loop::~Loop() { Stop(); }

void Loop::Start() {
  thread_ = std::thread([this] { Run(); });
}

bool Loop::Post(LoopRequest request) { return queue_.TryPush(std::move(request)); }

void Loop::Stop() {
  stopping_ = true;
  queue_.Close();
  if (thread_.joinable()) thread_.join();
}

View Loop::MakeView() const {
  return View{
      engine_->controller(), engine_->state(), {clock_.WallMillis(), clock_.SteadyMillis()}};
}

void Loop::Run() {
  while (!stopping_) {
    std::vector<LoopRequest> requests;
    std::optional<LoopRequest> first = queue_.PopFor(tick_);
    // Whatever else is queued shares the fsync of the first.
    while (first.has_value()) {
      requests.push_back(std::move(*first));
      first.reset();
      if (requests.size() >= kMaxRequestsPerTurn) break;
      if (queue_.size() > 0) first = queue_.PopFor(std::chrono::milliseconds(0));
    }
    Turn(std::move(requests));
  }
  const Status stopped = UnavailableError("the controller is shutting down; try again");
  while (std::optional<LoopRequest> request = queue_.Pop()) {
    request->reply(stopped, {}, MakeView());
  }
}

void Loop::Turn(std::vector<LoopRequest> requests) {
  const View before = MakeView();
  std::vector<core::Input> inputs;
  std::vector<Slice> slices;
  for (LoopRequest& request : requests) {
    Slice slice{std::move(request), OkStatus(), inputs.size(), 0};
    const int64_t deadline = slice.request.deadline_steady_ms;
    if (deadline != 0 && before.now.steady_ms > deadline) {
      slice.failure = DeadlineExceededError("the controller was too busy to begin in time");
    } else if (slice.request.make) {
      Result<std::vector<core::Input>> made = slice.request.make(before);
      if (!made.ok()) {
        slice.failure = made.status();
      } else {
        slice.count = made->size();
        std::move(made->begin(), made->end(), std::back_inserter(inputs));
      }
    }
    slices.push_back(std::move(slice));
  }
  if (before.now.steady_ms - last_tick_ms_ >= tick_.count()) {
    last_tick_ms_ = before.now.steady_ms;
    inputs.push_back(core::Tick{});
  }
  // Step takes a bounded batch; requests are few inputs each, so this loop runs once or twice.
  std::vector<core::Decision> decisions;
  for (size_t begin = 0; begin < inputs.size(); begin += max_batch_) {
    const size_t end = std::min(inputs.size(), begin + max_batch_);
    const std::vector<core::Input> part(std::make_move_iterator(inputs.begin() + begin),
                                        std::make_move_iterator(inputs.begin() + end));
    const auto started = std::chrono::steady_clock::now();
    std::vector<core::Decision> made = engine_->Step(part, MakeView().now);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    size_t events = 0;
    for (const core::Decision& decision : made) events += decision.events.size();
    observer_->OnStep(took.count(), events);
    const View view = MakeView();
    for (const core::Decision& decision : made) observer_->OnDecision(decision, view);
    made.resize(end - begin);  // without the engine's own tick
    std::move(made.begin(), made.end(), std::back_inserter(decisions));
  }
  const View after = MakeView();
  observer_->OnTurn(after, engine_->health());
  for (Slice& slice : slices) {
    const std::vector<core::Decision> own(
        std::make_move_iterator(decisions.begin() + static_cast<int64_t>(slice.begin)),
        std::make_move_iterator(decisions.begin() +
                                static_cast<int64_t>(slice.begin + slice.count)));
    slice.request.reply(slice.failure, own, after);
  }
}

}  // namespace nibble::rpc
