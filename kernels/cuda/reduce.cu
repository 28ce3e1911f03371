// SPDX-License-Identifier: Apache-2.0
//
// Sums that reach the host, checks of token ids; kernels: reduce_kernels.cuh, ids.cuh.
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/ids.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce_kernels.cuh"

namespace nibble::cuda {

Result<double> CudaBackend::Reduce(ConstTensorView x, bool squared) {
  const char* op = squared ? "SumOfSquares" : "Sum";
  RETURN_IF_ERROR(CheckSameSize(op, "x", x, x.size()));
  if (x.size() == 0) return 0.0;
  const int64_t chunks = (x.size() + kSumChunk - 1) / kSumChunk;
  RETURN_IF_ERROR(reduce_partials_.Reserve(*this, chunks * 8));
  SumKernel<<<static_cast<unsigned>(chunks), kThreads, 0, stream_>>>(
      x.f32(), x.size(), squared, static_cast<double*>(reduce_partials_.data()));
  RETURN_IF_ERROR(LaunchStatus(op));
  return SumPartials(chunks);
}

// Of reduce_partials_; waits.
Result<double> CudaBackend::SumPartials(int64_t count) {
  std::vector<double> host(static_cast<size_t>(count));
  RETURN_IF_ERROR(CopyOut(host.data(), reduce_partials_.data(), count * 8));
  double total = 0;
  for (const double partial : host) total += partial;
  return total;
}

Result<double> CudaBackend::Sum(ConstTensorView x) { return Reduce(x, false); }
Result<double> CudaBackend::SumOfSquares(ConstTensorView x) { return Reduce(x, true); }

Status CudaBackend::CheckIds(IdCheck check, ConstTensorView ids, int64_t limit) {
  const auto kind = static_cast<size_t>(check);
  id_limits_[kind] = limit;
  const int32_t allowed = check == IdCheck::kTarget ? kIgnoreTarget : 0;
  return ForEach(stream_, "CheckIds", ids.size(),
                 CheckIdsOp{ids.i32(), limit, allowed, &id_errors_->first[kind]});
}

}  // namespace nibble::cuda
