// SPDX-License-Identifier: Apache-2.0
#include "server/store/downsample.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::store {
namespace {

double Height(const Attributed<StepPoint>& point) {
  const double loss = point.point.loss;
  return std::isfinite(loss) ? loss : std::numeric_limits<double>::infinity();
}

}  // namespace

Downsampler::Downsampler(int64_t first_step, int64_t last_step, int max_points)
    : first_step_(first_step),
      width_((last_step - first_step) / std::max(1, (max_points - 2) / 2) + 1),
      buckets_(static_cast<size_t>((last_step - first_step) / width_ + 1)) {}

void Downsampler::Add(const Attributed<StepPoint>& point) {
  if (!first_ || point.point.step < first_->point.step) first_ = point;
  if (!last_ || point.point.step > last_->point.step) last_ = point;
  Bucket& bucket = buckets_[static_cast<size_t>((point.point.step - first_step_) / width_)];
  if (!bucket.low || Height(point) < Height(*bucket.low)) bucket.low = point;
  if (!bucket.high || Height(point) > Height(*bucket.high)) bucket.high = point;
}

std::vector<Attributed<StepPoint>> Downsampler::Take() {
  std::vector<Attributed<StepPoint>> points;
  const auto take = [&](const std::optional<Attributed<StepPoint>>& point) {
    if (point) points.push_back(*point);
  };
  take(first_);
  for (const Bucket& bucket : buckets_) {
    take(bucket.low);
    take(bucket.high);
  }
  take(last_);
  std::sort(points.begin(), points.end(),
            [](const auto& a, const auto& b) { return a.point.step < b.point.step; });
  points.erase(
      std::unique(points.begin(), points.end(),
                  [](const auto& a, const auto& b) { return a.point.step == b.point.step; }),
      points.end());
  return points;
}

}  // namespace nibble::store
