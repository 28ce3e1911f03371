// SPDX-License-Identifier: Apache-2.0
//
// Where the outliers of a row go while the rows before it are under way: the emulator runs blocks
// one after another, so rows that publish late are played by a second warp.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include "kernels/cuda/row_kernels.cuh"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

// What the words of rows 0 .. row - 1 become: counts (kind 1), or sums up to their end (kind 2)
// where `done` says so, which row 0 always has. Those that `late` names come during the launch.
struct Play {
  int64_t row;
  std::function<bool(int64_t)> done, late;
};

void ExpectTheSum(const Play& play) {
  const auto rows = static_cast<size_t>(play.row) + 1;
  std::vector<int32_t> counts(rows);
  std::vector<uint32_t> words(rows, 0), finally(rows);
  int32_t sum = 0;
  for (size_t i = 0; i < rows; ++i) {
    counts[i] = static_cast<int32_t>(formats::RandomWord(5, 0, 0, i) % 1000);
    const auto row = static_cast<int64_t>(i);
    const int32_t before = sum;
    sum += counts[i];
    const bool done = row == 0 || row == play.row || play.done(row);
    finally[i] =
        done ? static_cast<uint32_t>(sum) << 2 | 2u : static_cast<uint32_t>(counts[i]) << 2 | 1u;
    if (row < play.row && !play.late(row)) words[i] = finally[i];
    if (row == play.row) sum = before;
  }
  const RowScan scan{nullptr, nullptr, words.data()};
  int32_t* const found = new int32_t(-1);
  Emulator::Get().Launch({1}, 64, 0, FiberOrder::kForwards, [&] {
    if (threadIdx.x < 32) {
      const int32_t before = OutliersBefore(scan, play.row, counts[rows - 1]);
      if (threadIdx.x == 31) *found = before;
      return;
    }
    // The rows that come late, the last first.
    for (int64_t row = play.row - 1; row >= 0; --row) {
      __syncwarp();
      const auto i = static_cast<size_t>(row);
      if (threadIdx.x == 32 && play.late(row)) Publish(&words[i], finally[i]);
    }
  });
  EXPECT_EQ(*found, sum) << play.row;
  EXPECT_EQ(words[rows - 1], finally[rows - 1]) << play.row;
  delete found;
}

TEST(EmulatedRowScan, AddsUpRowsThatAreUnderWay) {
  const auto never = [](int64_t) { return false; };
  const auto always = [](int64_t) { return true; };
  for (const int64_t row : {0, 1, 2, 31, 32, 33, 64, 65, 200}) {
    ExpectTheSum({row, never, never});
    ExpectTheSum({row, always, never});
    ExpectTheSum({row, never, always});
    ExpectTheSum(
        {row, [](int64_t i) { return i % 37 == 3; }, [](int64_t i) { return i % 3 == 0; }});
    ExpectTheSum(
        {row, [=](int64_t i) { return i == row - 32; }, [=](int64_t i) { return i == row - 33; }});
  }
}

}  // namespace
}  // namespace nibble::cuda
