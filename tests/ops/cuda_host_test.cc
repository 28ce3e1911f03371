// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA backend decides on the host: ranges of the arena, pieces of a recorded step, which
// carried operands are still there.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/code_carrier.h"
#include "kernels/cuda/step_recorder.h"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kUnit = Arena::kAlignment;

TEST(DeviceArena, GivesAlignedRangesUntilItIsFull) {
  Arena arena(4 * kUnit + 100);
  EXPECT_EQ(arena.capacity_bytes(), 4 * kUnit);
  EXPECT_EQ(arena.Take(1), 0);
  EXPECT_EQ(arena.Take(kUnit + 1), kUnit);
  EXPECT_EQ(arena.Take(0), 3 * kUnit);
  EXPECT_EQ(arena.Take(1), -1);
  EXPECT_EQ(arena.used_bytes(), 4 * kUnit);
  EXPECT_EQ(Arena(0).Take(1), -1);
}

TEST(DeviceArena, TakesTheSmallestRangeThatFits) {
  Arena arena(10 * kUnit);
  const int64_t wide = arena.Take(3 * kUnit), wall = arena.Take(kUnit);
  const int64_t narrow = arena.Take(2 * kUnit);
  arena.Take(kUnit);
  arena.Return(wide);
  arena.Return(narrow);
  EXPECT_EQ(arena.Take(2 * kUnit), narrow);
  EXPECT_EQ(arena.Take(3 * kUnit), wide);
  arena.Return(wall);
  arena.Return(wall);  // once is enough
  EXPECT_EQ(arena.used_bytes(), 6 * kUnit);
}

// Random calls against a list of live ranges: none overlap, and all returned is one range again.
TEST(DeviceArena, NeverGivesARangeTwiceAndJoinsWhatReturns) {
  constexpr int64_t kCapacity = 256 * kUnit;
  Arena arena(kCapacity);
  std::map<int64_t, int64_t> live;  // offset to size
  int64_t used = 0;
  for (uint64_t i = 0; i < 5000; ++i) {
    const uint32_t word = formats::RandomWord(5, 0, 0, i);
    if (word % 3 != 0 || live.empty()) {
      const int64_t size = 1 + static_cast<int64_t>(word >> 8) % (24 * kUnit);
      const int64_t whole = (size + kUnit - 1) / kUnit * kUnit;
      const int64_t offset = arena.Take(size);
      if (offset < 0) {
        EXPECT_LT(arena.largest_free_bytes(), whole);
        continue;
      }
      const auto next = live.lower_bound(offset);
      EXPECT_TRUE(next == live.end() || offset + whole <= next->first);
      EXPECT_TRUE(next == live.begin() ||
                  std::prev(next)->first + std::prev(next)->second <= offset);
      EXPECT_LE(offset + whole, kCapacity);
      live[offset] = whole;
      used += whole;
    } else {
      auto victim = live.begin();
      std::advance(victim, static_cast<int64_t>(word >> 8) % static_cast<int64_t>(live.size()));
      arena.Return(victim->first);
      used -= victim->second;
      live.erase(victim);
    }
    ASSERT_EQ(arena.used_bytes(), used);
  }
  for (const auto& [offset, size] : live) arena.Return(offset);
  EXPECT_EQ(arena.used_bytes(), 0);
  EXPECT_EQ(arena.largest_free_bytes(), kCapacity);
}

// A device whose launches are letters: upper case when they come from a graph.
class FakeDevice final : public GraphApi {
 public:
  void Do(char op) { (gathering_ ? pending_ : done) += op; }

  Status Begin() override {
    if (refuses) return UnimplementedError("no graphs");
    EXPECT_FALSE(gathering_);
    gathering_ = true;
    pending_.clear();
    return OkStatus();
  }
  Result<Graph> End() override {
    EXPECT_TRUE(gathering_);
    gathering_ = false;
    if (loses) return InternalError("lost");
    ++graphs;
    return Graph{new std::string(pending_), static_cast<int64_t>(pending_.size())};
  }
  Result<void*> Instantiate(const Graph& graph) override {
    ++executables;
    return static_cast<void*>(new std::string(TextOf(graph.handle)));
  }
  // The shape of a graph is its length.
  bool Update(void* executable, const Graph& graph) override {
    if (TextOf(executable).size() != TextOf(graph.handle).size()) return false;
    TextOf(executable) = TextOf(graph.handle);
    return true;
  }
  Status Launch(void* executable) override {
    for (const char op : TextOf(executable)) done += static_cast<char>(op - 'a' + 'A');
    return OkStatus();
  }
  void DestroyGraph(const Graph& graph) override {
    --graphs;
    delete static_cast<std::string*>(graph.handle);
  }
  void DestroyExecutable(void* executable) override {
    --executables;
    delete static_cast<std::string*>(executable);
  }

  std::string done;
  bool refuses = false, loses = false;
  int graphs = 0, executables = 0;

 private:
  static std::string& TextOf(void* handle) { return *static_cast<std::string*>(handle); }
  std::string pending_;
  bool gathering_ = false;
};

// A step: some launches, a copy, some more.
std::string RunStep(FakeDevice& device, StepRecorder& recorder, const std::string& before,
                    const std::string& after) {
  device.done.clear();
  EXPECT_TRUE(recorder.BeginStep().ok());
  for (const char op : before) device.Do(op);
  EXPECT_TRUE(recorder.Pause().ok());
  device.done += '|';
  EXPECT_TRUE(recorder.Resume().ok());
  for (const char op : after) device.Do(op);
  EXPECT_TRUE(recorder.EndStep().ok());
  EXPECT_FALSE(recorder.recording());
  return device.done;
}

TEST(StepRecorder, GathersThePiecesOfAStepAfterItsWarmUp) {
  FakeDevice device;
  {
    StepRecorder recorder(&device);
    EXPECT_EQ(RunStep(device, recorder, "abc", "de"), "abc|de");
    EXPECT_EQ(RunStep(device, recorder, "abc", "de"), "abc|de");
    EXPECT_EQ(RunStep(device, recorder, "abc", "de"), "ABC|DE");
    EXPECT_EQ(recorder.instantiated(), 2);
    // The same shape with other arguments is updated; outside a step nothing is gathered.
    device.done.clear();
    device.Do('x');
    EXPECT_EQ(device.done, "x");
    EXPECT_EQ(RunStep(device, recorder, "fgh", "ij"), "FGH|IJ");
    EXPECT_EQ(recorder.instantiated(), 2);
    EXPECT_EQ(recorder.launched(), 4);
    // Another shape is built anew, in the order of the launches; nothing is launched for nothing.
    EXPECT_EQ(RunStep(device, recorder, "abcd", ""), "ABCD|");
    EXPECT_EQ(recorder.instantiated(), 3);
    EXPECT_EQ(recorder.launched(), 5);
    EXPECT_EQ(device.executables, 2);
  }
  EXPECT_EQ(device.graphs, 0);
  EXPECT_EQ(device.executables, 0);
}

TEST(StepRecorder, GivesUpOnStepsThatNeverRepeatThemselves) {
  FakeDevice device;
  StepRecorder recorder(&device);
  std::string ops = "a";
  for (int step = 0; step < StepRecorder::kWarmUpSteps + StepRecorder::kMostRebuiltSteps; ++step) {
    EXPECT_FALSE(recorder.gave_up());
    ops += 'b';
    RunStep(device, recorder, ops, "c");
  }
  EXPECT_TRUE(recorder.gave_up());
  EXPECT_EQ(device.executables, 0);
  EXPECT_EQ(RunStep(device, recorder, "ab", "c"), "ab|c");
}

TEST(StepRecorder, ADeviceWithoutGraphsRunsLaunchByLaunch) {
  FakeDevice device;
  device.refuses = true;
  StepRecorder recorder(&device);
  for (int step = 0; step < 4; ++step) {
    EXPECT_EQ(RunStep(device, recorder, "ab", "c"), "ab|c");
  }
  EXPECT_TRUE(recorder.gave_up());
}

TEST(StepRecorder, ALostPieceFailsItsStepAndEndsRecording) {
  FakeDevice device;
  StepRecorder recorder(&device);
  for (int step = 0; step < StepRecorder::kWarmUpSteps; ++step) RunStep(device, recorder, "a", "b");
  ASSERT_TRUE(recorder.BeginStep().ok());
  EXPECT_EQ(recorder.BeginStep().code(), StatusCode::kFailedPrecondition);
  device.Do('a');
  device.loses = true;
  EXPECT_EQ(recorder.Pause().code(), StatusCode::kInternal);
  EXPECT_TRUE(recorder.Resume().ok());
  EXPECT_FALSE(recorder.recording());
  EXPECT_TRUE(recorder.EndStep().ok());
  EXPECT_TRUE(recorder.EndStep().ok());  // outside a step
  device.loses = false;
  EXPECT_EQ(RunStep(device, recorder, "ab", "c"), "ab|c");
}

// Two layers read one X, forward and backward, as gate and up do: what is carried when.
TEST(CarriedOperands, LayersThatShareAnInputCarryItOnce) {
  constexpr Transpose kNo = Transpose::kNo, kYes = Transpose::kYes;
  CarriedOperands carried;
  const auto carry = [&](CarriedPlace place, uint64_t version, CodeCarrier carrier) {
    const bool there = carried.Holds(place, version, carrier);
    carried.Put(place, version, carrier);
    return !there;
  };
  const auto product = [&](Transpose ta, Transpose tb, uint64_t left, uint64_t right,
                           CodeCarrier carrier = CodeCarrier::kOuterFp8) {
    const int lefts = carry(LeftPlace(ta), left, carrier) ? 1 : 0;
    return lefts + (carry(RightPlace(ta, tb), right, carrier) ? 1 : 0);
  };
  constexpr uint64_t kX = 1, kGate = 2, kUp = 3;
  EXPECT_EQ(product(kNo, kYes, kX, kGate), 2);
  EXPECT_EQ(product(kNo, kYes, kX, kUp), 1);
  EXPECT_EQ(product(kNo, kNo, 10, kGate), 2);  // dX of gate
  EXPECT_EQ(product(kYes, kNo, 11, kX), 2);    // dW of gate
  EXPECT_EQ(product(kNo, kNo, 12, kUp), 2);    // dX of up
  EXPECT_EQ(product(kYes, kNo, 13, kX), 1);    // dW of up
  EXPECT_EQ(product(kYes, kNo, 13, kX), 0);
  // Another form, other codes, codes that nobody counts.
  EXPECT_EQ(product(kYes, kNo, 13, kX, CodeCarrier::kBf16), 2);
  EXPECT_EQ(product(kYes, kNo, 13, 4, CodeCarrier::kBf16), 1);
  EXPECT_EQ(product(kYes, kNo, 0, 0), 2);
  EXPECT_EQ(product(kYes, kNo, 0, 0), 2);
}

TEST(CarriedOperands, CodesThatLieAsTheProductReadsThemStayWhereTheyAre) {
  QuantizedTensor x;
  x.elem = Elem::kE4M3;
  EXPECT_TRUE(LiesAsCarried(x, CodeCarrier::kOuterFp8, false));
  EXPECT_TRUE(LiesAsCarried(x, CodeCarrier::kBlockFp8, false));
  EXPECT_FALSE(LiesAsCarried(x, CodeCarrier::kOuterFp8, true));
  EXPECT_FALSE(LiesAsCarried(x, CodeCarrier::kBf16, false));
  x.elem = Elem::kE2M1;
  EXPECT_TRUE(LiesAsCarried(x, CodeCarrier::kBlockFp4, false));
  EXPECT_FALSE(LiesAsCarried(x, CodeCarrier::kOuterFp8, false));
  x.elem = Elem::kE4M3;
  x.comp = OccComp::kWideE4M3;
  EXPECT_FALSE(LiesAsCarried(x, CodeCarrier::kOuterFp8, false));
}

}  // namespace
}  // namespace nibble::cuda
