// SPDX-License-Identifier: Apache-2.0
//
// Memory, capability answers and plain elementwise operations of the CPU backend.
#include "kernels/cpu/cpu_backend.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <thread>

#include "base/strings.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/formats/bf16.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements per chunk: 64 KiB, long against the hand-over
constexpr size_t kAlignment = 64;

NIBBLE_LOOP void FillRange(float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) x[i] = value;
}
NIBBLE_LOOP void AddRange(const float* a, const float* b, float* out, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}
NIBBLE_LOOP void AxpyRange(float factor, const float* x, float* y, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = y[i] + factor * x[i];
}
NIBBLE_LOOP void ScaleRange(float factor, float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * factor;
}
NIBBLE_LOOP void RoundRange(const float* x, float* out, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) out[i] = formats::RoundBf16(x[i]);
}

// Cores this process may use; containers pin them.
int UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

CpuBackend::CpuBackend(int threads, int64_t memory_limit_bytes,
                       const codes::KernelSet& code_kernels)
    : pool_(threads > 0 ? threads : std::min(UsableCores(), kMaxThreads)),
      memory_limit_bytes_(memory_limit_bytes),
      code_kernels_(code_kernels),
      bf16_kernel_(ChooseBf16Kernel(code_kernels)),
      blas_(BlasSgemm()) {}

std::string CpuBackend::description() const {
  return StrFormat("CPU, %d thread%s, %s, codes %s", pool_.threads(),
                   pool_.threads() == 1 ? "" : "s", BlasName().c_str(), code_kernels_.name);
}

Support CpuBackend::Supports(const OpQuery& query) const {
  const auto narrow = [](Elem elem) { return elem != Elem::kF32 && elem != Elem::kBf16; };
  switch (query.op) {
    case Op::kQuantize:
      return narrow(query.left) ? Support::kFast : Support::kNone;
    case Op::kQuantizedGemm:
      return codes::CodeTableOf(query.left) != nullptr && codes::CodeTableOf(query.right) != nullptr
                 ? Support::kFast
                 : Support::kReference;
    case Op::kGemm:
      return narrow(query.left) || narrow(query.right) ? Support::kNone : Support::kFast;
    default:
      return query.left == Elem::kF32 ? Support::kFast : Support::kNone;
  }
}

Result<void*> CpuBackend::Allocate(int64_t size_bytes) {
  if (size_bytes < 0) {
    return InvalidArgumentError(
        StrFormat("allocation of %lld bytes", static_cast<long long>(size_bytes)));
  }
  if (memory_limit_bytes_ > 0 && allocated_bytes_ + size_bytes > memory_limit_bytes_) {
    return ResourceExhaustedError("allocation of " + FormatBytes(static_cast<double>(size_bytes)) +
                                  " with " + FormatBytes(static_cast<double>(allocated_bytes_)) +
                                  " in use passes the limit of " +
                                  FormatBytes(static_cast<double>(memory_limit_bytes_)) +
                                  "; use a smaller micro-batch, sequence or model");
  }
  const size_t rounded =
      (static_cast<size_t>(size_bytes) + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, std::max(rounded, kAlignment));
  if (memory == nullptr) {
    return ResourceExhaustedError("the system has no " +
                                  FormatBytes(static_cast<double>(size_bytes)) + " left; " +
                                  FormatBytes(static_cast<double>(allocated_bytes_)) + " in use");
  }
  allocations_[memory] = size_bytes;
  allocated_bytes_ += size_bytes;
  peak_allocated_bytes_ = std::max(peak_allocated_bytes_, allocated_bytes_);
  return memory;
}

void CpuBackend::Free(void* memory) {
  const auto found = allocations_.find(memory);
  if (found == allocations_.end()) return;
  allocated_bytes_ -= found->second;
  allocations_.erase(found);
  std::free(memory);
}

int64_t CpuBackend::workspace_bytes() const {
  int64_t total =
      code_reference_.size_bytes() + code_workspace_.size_bytes() + groups_.size_bytes();
  for (const Buffer* buffer :
       {&rope_table_, &norm_partials_, &attention_scratch_, &attention_packed_, &gemm_a_, &gemm_b_,
        &reduce_partials_, &histogram_, &tail_keys_, &tails_, &row_stats_, &column_stats_,
        &reciprocals_, &code_scales_}) {
    total += buffer->capacity_bytes();
  }
  return total;
}

Result<float*> CpuBackend::Workspace(Buffer& buffer, int64_t floats) {
  RETURN_IF_ERROR(buffer.Reserve(*this, floats * static_cast<int64_t>(sizeof(float))));
  return static_cast<float*>(buffer.data());
}

Status CpuBackend::CopyIn(void* device, const void* host, int64_t size_bytes) {
  return Copy(device, host, size_bytes);
}
Status CpuBackend::CopyOut(void* host, const void* device, int64_t size_bytes) {
  return Copy(host, device, size_bytes);
}
Status CpuBackend::Copy(void* to_device, const void* from_device, int64_t size_bytes) {
  if (size_bytes > 0) {
    std::memmove(to_device, from_device, static_cast<size_t>(size_bytes));
  }
  return OkStatus();
}

Status CpuBackend::Fill(TensorView x, float value) {
  RETURN_IF_ERROR(CheckSameSize("Fill", "x", x, x.size()));
  pool_.RunRanges(x.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<FillRange>(x.f32() + first, last - first, value);
  });
  return OkStatus();
}

Status CpuBackend::Add(ConstTensorView a, ConstTensorView b, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("Add", "a", a, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "b", b, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "out", out, out.size()));
  pool_.RunRanges(out.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<AddRange>(a.f32() + first, b.f32() + first, out.f32() + first, last - first);
  });
  return OkStatus();
}

Status CpuBackend::Axpy(float factor, ConstTensorView x, TensorView y) {
  RETURN_IF_ERROR(CheckSameSize("Axpy", "x", x, y.size()));
  RETURN_IF_ERROR(CheckSameSize("Axpy", "y", y, y.size()));
  pool_.RunRanges(y.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<AxpyRange>(factor, x.f32() + first, y.f32() + first, last - first);
  });
  return OkStatus();
}

Status CpuBackend::Scale(float factor, TensorView x) {
  RETURN_IF_ERROR(CheckSameSize("Scale", "x", x, x.size()));
  pool_.RunRanges(x.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<ScaleRange>(factor, x.f32() + first, last - first);
  });
  return OkStatus();
}

Status CpuBackend::RoundToBf16(ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "x", x, out.size()));
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "out", out, out.size()));
  pool_.RunRanges(out.size(), kGrain, [&](int64_t first, int64_t last, int) {
    Cloned<RoundRange>(x.f32() + first, out.f32() + first, last - first);
  });
  return OkStatus();
}

}  // namespace nibble::cpu
