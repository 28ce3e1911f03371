// SPDX-License-Identifier: Apache-2.0
//
// Outlier clamping: exact order statistics of a tensor or of each row.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/quantize_loops.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/cpu/vector_scan.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/occ.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 8192;
constexpr int64_t kOrderKeys = 65536;
// Sampled guesses pay from some size on, and while the tails are small.
constexpr int64_t kSample = 8192;
constexpr int64_t kSmallestSampled = 8 * kSample;
constexpr double kLargestTail = 0.05;
// Guesses lie this many standard deviations of the sample's rank inside the wanted ones.
constexpr double kMargin = 4.5;
constexpr int64_t kRoomDivisor = 8;  // a tail may hold this part of all elements

float ValueOfKey(uint16_t key) { return formats::FromBf16(formats::Bf16FromOrderKey(key)); }

NIBBLE_LOOP int64_t CountAtMost(const uint16_t* keys, int64_t n, uint16_t most) {
  int64_t total = 0;
  for (int64_t first = 0; first < n; first += kSegment) {
    const int64_t end = std::min(n, first + kSegment);
    uint16_t count = 0;
    for (int64_t i = first; i < end; ++i) count = static_cast<uint16_t>(count + (keys[i] <= most));
    total += count;
  }
  return total;
}

// The key of rank `index`, by bisection of its sixteen bits: counting runs at vector speed and
// takes no branch on the data.
float Select(const uint16_t* keys, int64_t count, int64_t index) {
  uint32_t low = 0, high = kOrderKeys - 1;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (Cloned<CountAtMost>(keys, count, static_cast<uint16_t>(middle)) > index) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return ValueOfKey(static_cast<uint16_t>(low));
}

// Keys beyond two values, NaN among the high ones, of what one thread has seen.
struct Tails {
  uint16_t* low;
  uint16_t* high;
  int64_t room;  // of each
  int64_t low_count = 0;
  int64_t high_count = 0;
};

// False when there is no room.
bool Collect(const float* x, int64_t n, float below, float above, Tails* tails) {
  uint16_t positions[kSegment + 16];
  for (int64_t first = 0; first < n; first += kSegment) {
    const int64_t count =
        PositionsOutside(x + first, std::min(kSegment, n - first), below, above, positions);
    if (tails->low_count + count >= tails->room || tails->high_count + count >= tails->room) {
      return false;
    }
    for (int64_t i = 0; i < count; ++i) {
      const float value = x[first + positions[i]];
      const uint16_t key = formats::Bf16OrderKey(formats::ToBf16(value));
      const bool low = value < below;
      tails->low[tails->low_count] = key;
      tails->high[tails->high_count] = key;
      tails->low_count += low ? 1 : 0;
      tails->high_count += low ? 0 : 1;
    }
  }
  return true;
}

// Values that very likely lie inside the wanted order statistics: quantiles of a sample, one
// element from each of its equal parts.
void GuessBounds(ThreadPool& pool, ConstTensorView x, double tail, uint16_t* keys, float* low,
                 float* high) {
  const int64_t part = x.size() / kSample;
  pool.RunRanges(kSample, kSample / 8, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      const uint64_t hash = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u >> 32;
      const uint64_t within = hash * static_cast<uint64_t>(part) >> 32;
      const float value = x.f32()[i * part + static_cast<int64_t>(within)];
      keys[i] = formats::Bf16OrderKey(formats::ToBf16(value));
    }
  });
  const double rank = tail * static_cast<double>(kSample);
  const auto index = static_cast<int64_t>(rank + kMargin * std::sqrt(rank) + 2);
  *low = Select(keys, kSample, index);
  *high = Select(keys, kSample, kSample - 1 - index);
}

}  // namespace

// The tails beyond guessed bounds hold the wanted order statistics, unless the guess was bad.
Result<bool> CpuBackend::TailBounds(const Occ& occ, ConstTensorView x, float* low, float* high) {
  const formats::QuantileIndices index = formats::OccIndices(occ.alpha, x.size());
  const double tail = 1.0 - occ.alpha;
  const int64_t threads = pool_.threads();
  const int64_t room = x.size() / kRoomDivisor;
  RETURN_IF_ERROR(tail_keys_.Reserve(*this, 2 * (2 * threads * room + kSample)));
  RETURN_IF_ERROR(tails_.Reserve(*this, threads * static_cast<int64_t>(sizeof(Tails))));
  uint16_t* keys = static_cast<uint16_t*>(tail_keys_.data());
  Tails* tails = static_cast<Tails*>(tails_.data());
  for (int64_t t = 0; t < threads; ++t) {
    tails[t] = {keys + 2 * t * room, keys + (2 * t + 1) * room, room};
  }
  float below = 0, above = 0;
  GuessBounds(pool_, x, tail, keys + 2 * threads * room, &below, &above);
  std::atomic<bool> fits{true};
  pool_.RunRanges(x.size(), kElementsPerChunk, [&](int64_t first, int64_t last, int worker) {
    if (!Collect(x.f32() + first, last - first, below, above, &tails[worker])) fits = false;
  });
  if (!fits) return false;
  // All tails in the first thread's place; its room holds them or the guess was bad.
  for (int64_t t = 1; t < threads; ++t) {
    Tails& all = tails[0];
    if (all.low_count + tails[t].low_count > room || all.high_count + tails[t].high_count > room) {
      return false;
    }
    std::copy_n(tails[t].low, tails[t].low_count, all.low + all.low_count);
    std::copy_n(tails[t].high, tails[t].high_count, all.high + all.high_count);
    all.low_count += tails[t].low_count;
    all.high_count += tails[t].high_count;
  }
  const int64_t from_top = x.size() - 1 - index.high;
  if (index.low >= tails[0].low_count || from_top >= tails[0].high_count) return false;
  pool_.Run(2, [&](int64_t end, int) {
    const Tails& all = tails[0];
    if (end == 0) *low = Select(all.low, all.low_count, index.low);
    if (end == 1) *high = Select(all.high, all.high_count, all.high_count - 1 - from_top);
  });
  return true;
}

Status CpuBackend::HistogramBounds(const Occ& occ, ConstTensorView x, float* low, float* high) {
  // One histogram per thread: counts add up to the same whoever counted.
  const int64_t histograms = pool_.threads();
  uint32_t* counts = static_cast<uint32_t*>(histogram_.data());
  std::memset(counts, 0, static_cast<size_t>(histograms * kOrderKeys) * sizeof(uint32_t));
  pool_.RunRanges(x.size(), kElementsPerChunk, [&](int64_t first, int64_t last, int worker) {
    uint32_t* mine = counts + worker * kOrderKeys;
    uint16_t keys[kSegment];
    for (int64_t i = first; i < last; i += kSegment) {
      const int64_t n = std::min(kSegment, last - i);
      OrderKeys(x.f32() + i, keys, n);
      for (int64_t j = 0; j < n; ++j) ++mine[keys[j]];
    }
  });
  const formats::QuantileIndices index = formats::OccIndices(occ.alpha, x.size());
  int64_t seen = 0;
  for (int64_t key = 0; key < kOrderKeys && seen <= index.high; ++key) {
    int64_t count = 0;
    for (int64_t h = 0; h < histograms; ++h) count += counts[h * kOrderKeys + key];
    const float value = ValueOfKey(static_cast<uint16_t>(key));
    if (seen <= index.low && index.low < seen + count) *low = value;
    if (seen <= index.high && index.high < seen + count) *high = value;
    seen += count;
  }
  return OkStatus();
}

Status CpuBackend::TensorBounds(const Occ& occ, ConstTensorView x, RowStats* stats) {
  // Reserved whichever way is taken, so that a bad guess allocates nothing.
  RETURN_IF_ERROR(histogram_.Reserve(*this, pool_.threads() * kOrderKeys * 4));
  float low = 0, high = 0;
  bool found = false;
  if (x.size() >= kSmallestSampled && 1.0 - occ.alpha <= kLargestTail) {
    ASSIGN_OR_RETURN(found, TailBounds(occ, x, &low, &high));
  }
  if (!found) RETURN_IF_ERROR(HistogramBounds(occ, x, &low, &high));
  for (int64_t row = 0; row < x.rows; ++row) {
    stats[row].low = low;
    stats[row].high = high;
  }
  return OkStatus();
}

Status CpuBackend::TokenBounds(const Occ& occ, ConstTensorView x, RowStats* stats) {
  RETURN_IF_ERROR(histogram_.Reserve(*this, pool_.threads() * x.cols * 2));
  uint16_t* scratch = static_cast<uint16_t*>(histogram_.data());
  const formats::QuantileIndices index = formats::OccIndices(occ.alpha, x.cols);
  pool_.RunRanges(x.rows, std::max<int64_t>(1, kElementsPerChunk / x.cols),
                  [&](int64_t first, int64_t last, int worker) {
                    uint16_t* keys = scratch + worker * x.cols;
                    for (int64_t row = first; row < last; ++row) {
                      OrderKeys(x.f32() + row * x.cols, keys, x.cols);
                      stats[row].low = Select(keys, x.cols, index.low);
                      stats[row].high = Select(keys, x.cols, index.high);
                    }
                  });
  return OkStatus();
}

}  // namespace nibble::cpu
