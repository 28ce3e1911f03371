// SPDX-License-Identifier: Apache-2.0
//
// Several ranks: how they meet, sums in rank order, and whole runs of them, here as threads of one
// process.
#include <gtest/gtest.h>

#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>

#include "kernels/formats/philox.h"
#include "worker/train/ordered_communicator.h"
#include "worker/train/rendezvous.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

// What the ranks of one process share.
struct World {
  explicit World(int size) : size(size), barrier(size), pointers(size), numbers(size) {}
  const int size;
  std::barrier<> barrier;
  std::vector<const float*> pointers;
  std::vector<double> numbers;
};

class ThreadTransport final : public RankTransport {
 public:
  ThreadTransport(World* world, int rank) : world_(*world), rank_(rank) {}
  int rank() const override { return rank_; }
  int world_size() const override { return world_.size; }

  Status AllToAll(const float* parts, float* received, int64_t count) override {
    return Together(parts, [&](int from, const float* theirs) {
      Copy(received + from * count, theirs + rank_ * count, count);
    });
  }
  Status AllGather(const float* mine, float* all, int64_t count) override {
    return Together(
        mine, [&](int from, const float* theirs) { Copy(all + from * count, theirs, count); });
  }
  Status Broadcast(float* x, int64_t count, int root) override {
    return Together(x, [&](int from, const float* theirs) {
      if (from == root && from != rank_) Copy(x, theirs, count);
    });
  }
  Result<std::vector<double>> Gather(double value) override {
    world_.numbers[static_cast<size_t>(rank_)] = value;
    world_.barrier.arrive_and_wait();
    std::vector<double> all = world_.numbers;
    world_.barrier.arrive_and_wait();
    return all;
  }

 private:
  template <typename Read>
  Status Together(const float* mine, Read read) {
    world_.pointers[static_cast<size_t>(rank_)] = mine;
    world_.barrier.arrive_and_wait();
    for (int from = 0; from < world_.size; ++from) {
      read(from, world_.pointers[static_cast<size_t>(from)]);
    }
    world_.barrier.arrive_and_wait();
    return OkStatus();
  }
  static void Copy(float* to, const float* from, int64_t count) {
    std::memmove(to, from, static_cast<size_t>(count) * sizeof(float));
  }

  World& world_;
  const int rank_;
};

// Runs `work` once for each rank at the same time.
template <typename Work>
void OnRanks(int ranks, Work work) {
  std::vector<std::thread> threads;
  for (int rank = 1; rank < ranks; ++rank) threads.emplace_back([=] { work(rank); });
  work(0);
  for (std::thread& thread : threads) thread.join();
}

float ValueOf(int rank, int64_t i) {
  const uint32_t word =
      formats::RandomWord(5, 0, static_cast<uint32_t>(rank), static_cast<uint64_t>(i));
  return std::ldexp(static_cast<float>(static_cast<int32_t>(word)),
                    static_cast<int>(word % 40) - 50);
}

std::vector<float> ValuesOf(int rank, int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) values[static_cast<size_t>(i)] = ValueOf(rank, i);
  return values;
}

std::vector<float> SumsInRankOrder(int ranks, int64_t size) {
  std::vector<float> sums = ValuesOf(0, size);
  for (int rank = 1; rank < ranks; ++rank) {
    for (int64_t i = 0; i < size; ++i) sums[static_cast<size_t>(i)] += ValueOf(rank, i);
  }
  return sums;
}

TEST(OrderedCommunicator, SumsAreThoseOfTheRanksInOrderWhateverThePieces) {
  for (const int ranks : {1, 2, 3, 4}) {
    for (const int64_t size : {1, 15, 64, 1000, 4099}) {
      for (const int64_t piece : {16, 200, 1 << 22}) {
        SCOPED_TRACE(testing::Message() << ranks << " ranks, " << size << " by " << piece);
        const std::vector<float> expected = SumsInRankOrder(ranks, size);
        World world(ranks);
        OnRanks(ranks, [&](int rank) {
          const auto backend = TestBackend();
          OrderedCommunicator here(backend.get(), std::make_unique<ThreadTransport>(&world, rank),
                                   piece);
          std::vector<float> x = ValuesOf(rank, size);
          EXPECT_TRUE(here.AllReduceSum(TensorView{x.data(), 1, size}).ok());
          EXPECT_EQ(x, expected);
        });
      }
    }
  }
}

TEST(OrderedCommunicator, PartsGoWhereTheyBelong) {
  constexpr int kRanks = 3;
  constexpr int64_t kSize = 50;  // of a part
  const std::vector<float> sums = SumsInRankOrder(kRanks, kRanks * kSize);
  World world(kRanks);
  OnRanks(kRanks, [&](int rank) {
    const auto backend = TestBackend();
    OrderedCommunicator here(backend.get(), std::make_unique<ThreadTransport>(&world, rank), 48);
    std::vector<float> x = ValuesOf(rank, kRanks * kSize), part(kSize), all(x.size());
    const TensorView part_view{part.data(), 1, kSize}, all_view{all.data(), 1, kRanks * kSize};
    EXPECT_TRUE(here.ReduceScatterSum({x.data(), 1, kRanks * kSize}, part_view).ok());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), sums.begin() + rank * kSize));
    EXPECT_TRUE(here.AllGather(part_view, all_view).ok());
    EXPECT_EQ(all, sums);
    EXPECT_TRUE(here.Broadcast(TensorView{x.data(), 1, kRanks * kSize}, 2).ok());
    EXPECT_EQ(x, ValuesOf(2, kRanks * kSize));
    EXPECT_EQ(here.AllReduceSum(rank + 0.5).value(), 4.5);
    EXPECT_EQ(here.AllReduceMax(static_cast<float>(-rank)).value(), 0.0f);
    EXPECT_TRUE(std::isnan(here.AllReduceMax(rank == 1 ? NAN : 1.0f).value()));
    EXPECT_TRUE(here.Barrier().ok());
    EXPECT_EQ(here.Broadcast(all_view, kRanks).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(here.AllGather(part_view, part_view).code(), StatusCode::kInvalidArgument);
  });
}

class RendezvousTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-ranks").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  Rendezvous At(int rank, int ranks, int timeout_ms = 60'000) const {
    Rendezvous::Options options;
    options.folder = folder_;
    options.rank = rank;
    options.world_size = ranks;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    options.grace = std::chrono::milliseconds(timeout_ms);
    options.poll = std::chrono::milliseconds(1);
    return Rendezvous(options);
  }
  std::string folder_;
};

TEST_F(RendezvousTest, EveryRankGetsTheWordOfRankZeroAndNotThatOfAnEarlierRun) {
  for (const std::string run : {"first", "second"}) {
    std::vector<std::string> words(4);
    OnRanks(4, [&](int rank) {
      // Rank 0 comes last in one run: the others meet what the earlier one left.
      if (rank == 0 && run == "second") std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const Result<std::string> word = At(rank, 4).Exchange([&]() -> Result<std::string> {
        EXPECT_EQ(rank, 0);
        return run + std::string("\0\xff\x7f", 3);
      });
      EXPECT_TRUE(word.ok()) << word.status().ToString();
      words[static_cast<size_t>(rank)] = word.value_or("");
    });
    for (const std::string& word : words) EXPECT_EQ(word, run + std::string("\0\xff\x7f", 3));
  }
}

TEST_F(RendezvousTest, ATimeOutNamesTheRanksThatDidNotCome) {
  OnRanks(3, [&](int rank) {
    if (rank == 2) return;
    const Status status = At(rank, 3, 300)
                              .Exchange([]() -> Result<std::string> { return std::string("x"); })
                              .status();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_NE(status.message().find(": rank 2 did not come"), std::string::npos)
        << status.message();
  });
  const Status alone =
      At(1, 4, 50).Exchange([]() -> Result<std::string> { return std::string(); }).status();
  EXPECT_NE(alone.message().find("rank 1 of 4"), std::string::npos) << alone.message();
  EXPECT_NE(alone.message().find("ranks 2, 3 did not"), std::string::npos) << alone.message();
}

TEST_F(RendezvousTest, RankZeroIsMissedWhenOnlyItsOldWordIsThere) {
  OnRanks(2, [&](int rank) {
    EXPECT_TRUE(
        At(rank, 2).Exchange([]() -> Result<std::string> { return std::string("x"); }).ok());
  });
  const Status status =
      At(1, 2, 50).Exchange([]() -> Result<std::string> { return std::string(); }).status();
  EXPECT_NE(status.message().find(": rank 0 did not come"), std::string::npos) << status.message();
}

TEST_F(RendezvousTest, WhoWaitsInTheSameCollectiveIsNotLate) {
  ASSERT_TRUE(MakeDirectories(folder_).ok());
  OnRanks(3, [&](int rank) {
    if (rank == 2) return;
    EXPECT_EQ(At(rank, 3, 300).Late(17), "rank 2");
  });
  EXPECT_EQ(At(2, 3, 50).Late(18), "ranks 0, 1");
  OnRanks(2, [&](int rank) { EXPECT_EQ(At(rank, 2).Late(19), "no rank"); });
}

class RanksTest : public RunTest {
 protected:
  // One run on `ranks` ranks; the end records by rank.
  std::vector<EndRecord> RunOnRanks(int ranks, const RunConfig& config, int stop_rank = -1,
                                    int64_t stop_step = 0) {
    World world(ranks);
    std::vector<EndRecord> ends(static_cast<size_t>(ranks));
    OnRanks(ranks, [&](int rank) {
      RunConfig own = config;
      own.run.rank = rank;
      own.run.world_size = ranks;
      RunEnvironment environment;
      environment.make_communicator =
          [&](std::string_view, Backend* backend, int r, int size,
              const std::string& folder) -> Result<std::unique_ptr<Communicator>> {
        EXPECT_EQ(size, ranks);
        EXPECT_EQ(folder, JoinPath(config.run.dir, "ranks/attempt-1"));
        return std::unique_ptr<Communicator>(std::make_unique<OrderedCommunicator>(
            backend, std::make_unique<ThreadTransport>(&world, r)));
      };
      int64_t asked = 0;
      environment.stop_requested = [&, rank] { return rank == stop_rank && asked++ >= stop_step; };
      ends[static_cast<size_t>(rank)] = Run(own, environment);
    });
    return ends;
  }
};

TEST_F(RanksTest, RanksAgreeBitForBitAndTrainAsOneRankDoes) {
  for (const char* recipe : {"bf16", "fp8_lm", "fp4_fold8"}) {
    SCOPED_TRACE(recipe);
    const std::string name = std::string(recipe) + "-one";
    const EndRecord one = Run(Config(name, recipe));
    ASSERT_EQ(one.reason, kEndCompleted) << one.message;
    const std::vector<EndRecord> two = RunOnRanks(2, Config(std::string(recipe) + "-two", recipe));
    for (const EndRecord& end : two) {
      ASSERT_EQ(end.reason, kEndCompleted) << end.message;
      EXPECT_EQ(end.weights_sha256, two[0].weights_sha256);
      EXPECT_EQ(end.final_loss, two[0].final_loss);
      EXPECT_EQ(end.final_validation_loss, two[0].final_validation_loss);
    }
    // The same windows of data, sums in another order, other random numbers.
    EXPECT_NEAR(two[0].final_loss, one.final_loss, 0.01 * one.final_loss);
    EXPECT_NEAR(two[0].final_validation_loss, one.final_validation_loss, 0.01 * one.final_loss);
  }
}

TEST_F(RanksTest, AStopOfOneRankStopsAllAndTheRunGoesOnBitForBit) {
  const RunConfig whole = Config("whole", "bf16"), parts = Config("parts", "bf16");
  const std::vector<EndRecord> expected = RunOnRanks(2, whole);
  const std::vector<EndRecord> stopped = RunOnRanks(2, parts, 1, 5);
  for (const EndRecord& end : stopped) {
    EXPECT_EQ(end.reason, kEndPreempted) << end.message;
    EXPECT_EQ(end.step, 5);
  }
  EXPECT_TRUE(PathExists(JoinPath(parts.run.dir, "checkpoints/step-00000005")));
  EXPECT_FALSE(PathExists(JoinPath(parts.run.dir, "rank-1/checkpoints")));
  for (const EndRecord& end : RunOnRanks(2, parts)) {
    EXPECT_EQ(end.reason, kEndCompleted) << end.message;
    EXPECT_EQ(end.weights_sha256, expected[0].weights_sha256);
  }
}

}  // namespace
}  // namespace nibble
