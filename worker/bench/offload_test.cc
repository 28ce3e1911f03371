// SPDX-License-Identifier: Apache-2.0
//
// Moments in host memory on a device whose transfers come as late as they may: only when the work
// or the host waits for their lane.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <deque>
#include <functional>

#include "worker/bench/timed_backend.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

struct LaneCounts {
  int64_t beside_other = 0;  // waits for a lane while the other one has transfers under way
  int64_t too_early = 0;     // transfers out that the lane did not order after the work
  int64_t pinned = 0, unpinned = 0;
};

class LateLanes final : public bench::TimedBackend {
 public:
  LateLanes(std::unique_ptr<Backend> inner, LaneCounts* counts)
      : TimedBackend(inner.get(), bench::ClockKind::kWall),
        inner_(std::move(inner)),
        counts_(*counts) {}

  Status TransferIn(int lane, void* device, const void* host, int64_t size_bytes) override {
    return Queue(lane, device, host, size_bytes);
  }
  Status TransferOut(int lane, void* host, const void* device, int64_t size_bytes) override {
    counts_.too_early += worked_[static_cast<size_t>(lane)] ? 1 : 0;
    return Queue(lane, host, device, size_bytes);
  }
  Status LaneAfterWork(int lane) override {
    worked_[static_cast<size_t>(lane)] = false;
    return OkStatus();
  }
  Status WorkAfterLane(int lane) override {
    const auto here = static_cast<size_t>(lane);
    counts_.beside_other += lanes_[1 - here].empty() ? 0 : 1;
    Finish(here);
    return OkStatus();
  }
  Status Synchronize() override {
    Finish(0);
    Finish(1);
    return OkStatus();
  }
  Status PinHost(void*, int64_t) override {
    return ++counts_.pinned % 2 == 1 ? OkStatus() : UnavailableError("no more");
  }
  void UnpinHost(void*) override { ++counts_.unpinned; }

 protected:
  void Enter() override { worked_ = {true, true}; }

 private:
  Status Queue(int lane, void* to, const void* from, int64_t size_bytes) {
    lanes_[static_cast<size_t>(lane)].push_back(
        [=] { std::memcpy(to, from, static_cast<size_t>(size_bytes)); });
    return OkStatus();
  }
  void Finish(size_t lane) {
    for (; !lanes_[lane].empty(); lanes_[lane].pop_front()) lanes_[lane].front()();
  }

  std::unique_ptr<Backend> inner_;
  LaneCounts& counts_;
  std::array<std::deque<std::function<void()>>, kTransferLanes> lanes_;
  std::array<bool, kTransferLanes> worked_ = {};
};

class OffloadTest : public RunTest {};

TEST_F(OffloadTest, LateTransfersGiveTheSameRunAndTravelBesideTheUpdate) {
  for (const char* recipe : {"bf16", "fp8_lm", "fp4_fold8"}) {
    SCOPED_TRACE(recipe);
    const EndRecord kept = Run(Config(std::string("kept-") + recipe, recipe, 8));
    ASSERT_EQ(kept.reason, kEndCompleted) << kept.message;
    LaneCounts counts;
    RunConfig config = Config(std::string("offloaded-") + recipe, recipe, 8);
    config.run.backend = kBackendCuda;
    config.memory.offload_optimizer = true;
    RunEnvironment environment;
    environment.make_backend =
        [&](std::string_view name,
            const BackendOptions& options) -> Result<std::unique_ptr<Backend>> {
      ASSIGN_OR_RETURN(std::unique_ptr<Backend> cpu, MakeBackend("cpu", options));
      if (name == kBackendCpu) return cpu;
      return std::unique_ptr<Backend>(std::make_unique<LateLanes>(std::move(cpu), &counts));
    };
    // Stopped, and gone on with from the checkpoint: it has the moments of all updates.
    RunEnvironment stopped = environment;
    int asked = 0;
    stopped.stop_requested = [&asked] { return asked++ == 3; };
    ASSERT_EQ(Run(config, stopped).reason, kEndPreempted);
    const EndRecord end = Run(config, environment);
    ASSERT_EQ(end.reason, kEndCompleted) << end.message;
    EXPECT_EQ(end.weights_sha256, kept.weights_sha256);
    EXPECT_EQ(counts.too_early, 0);
    // For every tensor but each update's last.
    const auto tensors = static_cast<int64_t>(ListParameters(TinyModel()).size());
    EXPECT_GE(counts.beside_other, 8 * (tensors - 1));
    EXPECT_EQ(counts.pinned, 4);
    EXPECT_EQ(counts.unpinned, 2);
  }
}

}  // namespace
}  // namespace nibble
