// SPDX-License-Identifier: Apache-2.0
//
// Sums that reach the host, checks of token ids.
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kChunk = 16384;  // elements per block: fixed, so the order of the sum is too

__global__ void SumKernel(const float* x, int64_t n, bool squared, double* partials) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t last = first + kChunk < n ? first + kChunk : n;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const double value = static_cast<double>(x[i]);
    sum += squared ? value * value : value;
  }
  const double total = BlockSum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// The first offending position, or `n`. Integer minimum: the order does not matter.
struct CheckIdsOp {
  const int32_t* ids;
  int64_t limit;
  bool allow_ignore;
  unsigned long long* first_bad;
  __device__ void operator()(int64_t i) const {
    const int32_t id = ids[i];
    if (allow_ignore && id == Backend::kIgnoreTarget) return;
    if (id < 0 || id >= limit) atomicMin(first_bad, static_cast<unsigned long long>(i));
  }
};

}  // namespace

Result<double> CudaBackend::Reduce(ConstTensorView x, bool squared) {
  const char* op = squared ? "SumOfSquares" : "Sum";
  RETURN_IF_ERROR(CheckSameSize(op, "x", x, x.size()));
  if (x.size() == 0) return 0.0;
  const int64_t chunks = (x.size() + kChunk - 1) / kChunk;
  RETURN_IF_ERROR(reduce_partials_.Reserve(*this, chunks * 8));
  SumKernel<<<static_cast<unsigned>(chunks), kThreads, 0, stream_>>>(
      x.f32(), x.size(), squared, static_cast<double*>(reduce_partials_.data()));
  RETURN_IF_ERROR(LaunchStatus(op));
  std::vector<double> host(static_cast<size_t>(chunks));
  RETURN_IF_ERROR(CopyOut(host.data(), reduce_partials_.data(), chunks * 8));
  double total = 0;
  for (const double partial : host) total += partial;
  return total;
}

Result<double> CudaBackend::Sum(ConstTensorView x) { return Reduce(x, false); }
Result<double> CudaBackend::SumOfSquares(ConstTensorView x) { return Reduce(x, true); }

Status CudaBackend::CheckIds(const char* op, ConstTensorView ids, int64_t limit,
                             bool allow_ignore) {
  RETURN_IF_ERROR(words_.Reserve(*this, 8));
  const unsigned long long none = static_cast<unsigned long long>(ids.size());
  RETURN_IF_ERROR(CopyIn(words_.data(), &none, sizeof(none)));
  RETURN_IF_ERROR(ForEach(
      stream_, op, ids.size(),
      CheckIdsOp{ids.i32(), limit, allow_ignore, static_cast<unsigned long long*>(words_.data())}));
  unsigned long long first_bad = 0;
  RETURN_IF_ERROR(CopyOut(&first_bad, words_.data(), sizeof(first_bad)));
  if (first_bad == none) return OkStatus();
  int32_t id = 0;
  RETURN_IF_ERROR(CopyOut(&id, ids.i32() + first_bad, sizeof(id)));
  return OutOfRangeError(
      StrFormat("%s: token %d at position %lld is outside the vocabulary of %lld", op, id,
                static_cast<long long>(first_bad), static_cast<long long>(limit)));
}

}  // namespace nibble::cuda
