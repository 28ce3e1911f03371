// SPDX-License-Identifier: Apache-2.0
#include "worker/train/ordered_communicator.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/strings.h"

namespace nibble {
namespace {

constexpr int64_t kAlign = 16;  // elements: 64 bytes

TensorView Flat(float* data, int64_t size) { return {data, 1, size, DType::kF32}; }

}  // namespace

Status OrderedCommunicator::Check(ConstTensorView x, int64_t size, int64_t expected) const {
  if (x.dtype == DType::kF32 && size == expected) return OkStatus();
  return InvalidArgumentError(
      StrFormat("communicator: %lld elements of %s where a world of %d ranks needs %lld of f32",
                static_cast<long long>(size), DTypeName(x.dtype), world_size(),
                static_cast<long long>(expected)));
}

int64_t OrderedCommunicator::ShareOf(int64_t left) const {
  const int64_t largest = std::max(kAlign, piece_elements_ / world_size() / kAlign * kAlign);
  return std::min(largest, (left + kAlign - 1) / kAlign * kAlign);
}

Status OrderedCommunicator::ExchangeAndAdd(const float* parts, int64_t count) {
  RETURN_IF_ERROR(received_.Reserve(backend_, world_size() * count * 4));
  RETURN_IF_ERROR(backend_.Synchronize());
  RETURN_IF_ERROR(transport_->AllToAll(parts, received(), count));
  const TensorView sum = Flat(received(), count);
  for (int r = 1; r < world_size(); ++r) {
    RETURN_IF_ERROR(backend_.Axpy(1.0f, Flat(received() + r * count, count), sum));
  }
  return OkStatus();
}

Status OrderedCommunicator::AllReduceSum(TensorView x) {
  RETURN_IF_ERROR(Check(x, x.size(), x.size()));
  const int world = world_size();
  for (int64_t begin = 0; begin < x.size();) {
    const int64_t left = x.size() - begin;
    const int64_t count = ShareOf((left + world - 1) / world);
    const int64_t covered = std::min(left, count * world), padded = count * world;
    float* place = x.f32() + begin;
    if (covered < padded) {
      RETURN_IF_ERROR(parts_.Reserve(backend_, padded * 4));
      RETURN_IF_ERROR(backend_.Fill(Flat(parts(), padded), 0.0f));
      RETURN_IF_ERROR(backend_.Copy(parts(), place, covered * 4));
      place = parts();
    }
    RETURN_IF_ERROR(ExchangeAndAdd(place, count));
    RETURN_IF_ERROR(backend_.Synchronize());
    RETURN_IF_ERROR(transport_->AllGather(received(), place, count));
    if (covered < padded) {
      RETURN_IF_ERROR(backend_.Copy(x.f32() + begin, parts(), covered * 4));
    }
    begin += covered;
  }
  return OkStatus();
}

Status OrderedCommunicator::ReduceScatterSum(ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(Check(x, x.size(), world_size() * out.size()));
  RETURN_IF_ERROR(Check(out, out.size(), out.size()));
  for (int64_t begin = 0; begin < out.size();) {
    const int64_t count = ShareOf(out.size() - begin);
    const int64_t covered = std::min(count, out.size() - begin);
    RETURN_IF_ERROR(parts_.Reserve(backend_, world_size() * count * 4));
    RETURN_IF_ERROR(backend_.Fill(Flat(parts(), world_size() * count), 0.0f));
    for (int r = 0; r < world_size(); ++r) {
      RETURN_IF_ERROR(
          backend_.Copy(parts() + r * count, x.f32() + r * out.size() + begin, covered * 4));
    }
    RETURN_IF_ERROR(ExchangeAndAdd(parts(), count));
    RETURN_IF_ERROR(backend_.Copy(out.f32() + begin, received(), covered * 4));
    begin += covered;
  }
  return backend_.Synchronize();
}

Status OrderedCommunicator::AllGather(ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(Check(out, out.size(), world_size() * x.size()));
  RETURN_IF_ERROR(Check(x, x.size(), x.size()));
  RETURN_IF_ERROR(backend_.Synchronize());
  return transport_->AllGather(x.f32(), out.f32(), x.size());
}

Status OrderedCommunicator::Broadcast(TensorView x, int root) {
  if (root < 0 || root >= world_size()) {
    return InvalidArgumentError(
        StrFormat("broadcast: root %d is not in a world of %d ranks", root, world_size()));
  }
  RETURN_IF_ERROR(Check(x, x.size(), x.size()));
  RETURN_IF_ERROR(backend_.Synchronize());
  return transport_->Broadcast(x.f32(), x.size(), root);
}

Status OrderedCommunicator::Barrier() {
  RETURN_IF_ERROR(backend_.Synchronize());
  return transport_->Gather(0).status();
}

Result<double> OrderedCommunicator::AllReduceSum(double value) {
  ASSIGN_OR_RETURN(const std::vector<double> all, transport_->Gather(value));
  double sum = 0;
  for (const double one : all) sum += one;
  return sum;
}

Result<float> OrderedCommunicator::AllReduceMax(float value) {
  ASSIGN_OR_RETURN(const std::vector<double> all, transport_->Gather(static_cast<double>(value)));
  double largest = all.front();
  for (const double one : all) {
    if (std::isnan(one)) return static_cast<float>(one);
    largest = std::max(largest, one);
  }
  return static_cast<float>(largest);
}

}  // namespace nibble
