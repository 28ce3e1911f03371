// SPDX-License-Identifier: Apache-2.0
//
// Outlier clamping: exact order statistics of a tensor or of each row.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/quantize_loops.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/occ.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 8192;
constexpr int64_t kOrderKeys = 65536;

}  // namespace

Status CpuBackend::TensorBounds(const Occ& occ, ConstTensorView x, RowStats* stats) {
  // One histogram per thread: counts add up to the same whoever counted.
  const int64_t histograms = pool_.threads();
  RETURN_IF_ERROR(histogram_.Reserve(*this, histograms * kOrderKeys * 4));
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
  float low = 0, high = 0;
  for (int64_t key = 0; key < kOrderKeys && seen <= index.high; ++key) {
    int64_t count = 0;
    for (int64_t h = 0; h < histograms; ++h) count += counts[h * kOrderKeys + key];
    const float value = formats::FromBf16(formats::Bf16FromOrderKey(static_cast<uint16_t>(key)));
    if (seen <= index.low && index.low < seen + count) low = value;
    if (seen <= index.high && index.high < seen + count) high = value;
    seen += count;
  }
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
                      const auto value_at = [&](int64_t i) {
                        std::nth_element(keys, keys + i, keys + x.cols);
                        return formats::FromBf16(formats::Bf16FromOrderKey(keys[i]));
                      };
                      stats[row].low = value_at(index.low);
                      stats[row].high = value_at(index.high);
                    }
                  });
  return OkStatus();
}

}  // namespace nibble::cpu
