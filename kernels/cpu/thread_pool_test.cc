// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace nibble::cpu {
namespace {

TEST(ThreadPool, RunsEveryChunkOnceWhateverTheThreads) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t chunks = 0; chunks < 40; ++chunks) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(chunks));
      std::atomic<bool> worker_known = true;
      pool.Run(chunks, [&](int64_t chunk, int worker) {
        runs[static_cast<size_t>(chunk)].fetch_add(1);
        if (worker < 0 || worker >= threads) worker_known = false;
      });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
      EXPECT_TRUE(worker_known);
    }
  }
}

TEST(ThreadPool, ResultsAreVisibleAfterRunThousandsOfTimes) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 5000; ++round) {
    pool.Run(64, [&](int64_t chunk, int) { values[static_cast<size_t>(chunk)] += chunk; });
  }
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 5000 * i);
}

TEST(ThreadPool, RangesCoverTheCountWithoutOverlap) {
  ThreadPool pool(2);
  std::vector<int> touched(1003, 0);
  pool.RunRanges(1003, 100, [&](int64_t first, int64_t last, int) {
    EXPECT_EQ(first % 100, 0);
    for (int64_t i = first; i < last; ++i) ++touched[static_cast<size_t>(i)];
  });
  for (const int count : touched) EXPECT_EQ(count, 1);
  pool.RunRanges(0, 100, [&](int64_t, int64_t, int) { ADD_FAILURE() << "empty range ran"; });
}

}  // namespace
}  // namespace nibble::cpu
