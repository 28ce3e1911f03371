// SPDX-License-Identifier: Apache-2.0
//
// Test support: the CPU backend with memory that the host cannot touch, and with BF16 as a type of
// that memory. Include from tests only.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <memory>
#include <utility>

#include "kernels/formats/bf16.h"
#include "worker/bench/timed_backend.h"

namespace nibble {

inline constexpr int64_t kArenaBytes = int64_t{1} << 28;
inline constexpr int64_t kAlignment = 64;

// The CPU backend with allocations in pages that are readable only during its own calls. Memory is
// not given back before the end.
class SealedBackend : public bench::TimedBackend {
 public:
  explicit SealedBackend(std::unique_ptr<Backend> inner)
      : TimedBackend(inner.get(), bench::ClockKind::kWall), inner_(std::move(inner)) {
    arena_ = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  ~SealedBackend() override { munmap(arena_, kArenaBytes); }

  Result<void*> Allocate(int64_t size_bytes) override {
    if (arena_ == MAP_FAILED || used_ + size_bytes + kAlignment > kArenaBytes) {
      return ResourceExhaustedError("the sealed arena is full");
    }
    void* memory = static_cast<uint8_t*>(arena_) + used_;
    used_ += (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return memory;
  }
  void Free(void*) override {}

 protected:
  void Enter() override { EXPECT_EQ(mprotect(arena_, kArenaBytes, PROT_READ | PROT_WRITE), 0); }
  void Leave() override { EXPECT_EQ(mprotect(arena_, kArenaBytes, PROT_NONE), 0); }

 private:
  std::unique_ptr<Backend> inner_;
  void* arena_ = nullptr;
  int64_t used_ = 0;
};

// Keeps BF16 as such, with views of it wherever kernels/backend.h has [bf16]: what it reads is
// widened before the CPU's operation, what it writes is rounded afterwards.
class NarrowBackend : public SealedBackend {
 public:
  explicit NarrowBackend(std::unique_ptr<Backend> inner, int64_t* products = nullptr)
      : SealedBackend(std::move(inner)), products_(products != nullptr ? *products : own_) {}

  bool StoresBf16() const override { return true; }
  int64_t allocations() const { return allocations_; }

  Result<void*> Allocate(int64_t size_bytes) override {
    ++allocations_;
    return SealedBackend::Allocate(size_bytes);
  }
  Status RoundToBf16(ConstTensorView x, TensorView out) override {
    ASSIGN_OR_RETURN(const ConstTensorView wide, Wide(0, x));
    return Narrowing(out, [&](TensorView to) { return SealedBackend::RoundToBf16(wide, to); });
  }
  Status RopeForward(const RopeParams& params, ConstTensorView x, TensorView out) override {
    return Narrowing(out, [&](TensorView to) { return SealedBackend::RopeForward(params, x, to); });
  }
  Status AttentionForward(const AttentionParams& params, ConstTensorView q, ConstTensorView k,
                          ConstTensorView v, TensorView out, TensorView lse) override {
    RETURN_IF_ERROR(OneType({q, k, v, out}));
    ASSIGN_OR_RETURN(q, Wide(0, q));
    ASSIGN_OR_RETURN(k, Wide(1, k));
    ASSIGN_OR_RETURN(v, Wide(2, v));
    return Narrowing(out, [&](TensorView to) {
      return SealedBackend::AttentionForward(params, q, k, v, to, lse);
    });
  }
  Status AttentionBackward(const AttentionParams& params, ConstTensorView dout, ConstTensorView q,
                           ConstTensorView k, ConstTensorView v, ConstTensorView out,
                           ConstTensorView lse, TensorView dq, TensorView dk,
                           TensorView dv) override {
    RETURN_IF_ERROR(OneType({q, k, v, out}));
    ASSIGN_OR_RETURN(q, Wide(0, q));
    ASSIGN_OR_RETURN(k, Wide(1, k));
    ASSIGN_OR_RETURN(v, Wide(2, v));
    ASSIGN_OR_RETURN(out, Wide(3, out));
    return SealedBackend::AttentionBackward(params, dout, q, k, v, out, lse, dq, dk, dv);
  }
  Status SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) override {
    RETURN_IF_ERROR(OneType({gate, up}));
    ASSIGN_OR_RETURN(gate, Wide(0, gate));
    ASSIGN_OR_RETURN(up, Wide(1, up));
    return SealedBackend::SwiGluForward(gate, up, out);
  }
  Status SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                        TensorView dgate, TensorView dup) override {
    RETURN_IF_ERROR(OneType({gate, up}));
    ASSIGN_OR_RETURN(gate, Wide(0, gate));
    ASSIGN_OR_RETURN(up, Wide(1, up));
    return SealedBackend::SwiGluBackward(dout, gate, up, dgate, dup);
  }
  Status CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                      TensorView gradient, TensorView losses) override {
    if (gradient.dtype != DType::kBF16) {
      return SealedBackend::CrossEntropy(logits, targets, gradient_scale, gradient, losses);
    }
    return Narrowing(gradient, [&](TensorView to) -> Status {
      RETURN_IF_ERROR(Copy(to.data, logits.data, logits.size_bytes()));
      return SealedBackend::CrossEntropy(to, targets, gradient_scale, to, losses);
    });
  }
  Status Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
              Transpose transpose_b, bool accumulate, TensorView out) override {
    RETURN_IF_ERROR(Overwritten(accumulate, out));
    if (mode == GemmMode::kBf16) {
      ++products_;
      ASSIGN_OR_RETURN(a, Wide(0, a));
      ASSIGN_OR_RETURN(b, Wide(1, b));
    }
    return Narrowing(out, [&](TensorView to) {
      return SealedBackend::Gemm(mode, a, transpose_a, b, transpose_b, accumulate, to);
    });
  }
  Status QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                       const QuantizedTensor& b, TensorView out) override {
    RETURN_IF_ERROR(Overwritten(params.accumulate, out));
    return Narrowing(out,
                     [&](TensorView to) { return SealedBackend::QuantizedGemm(params, a, b, to); });
  }
  Status Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                  QuantizedTensor* out, TensorView decoded) override {
    ASSIGN_OR_RETURN(x, Wide(0, x));
    return SealedBackend::Quantize(quant, context, x, out, decoded);
  }
  Result<QuantizationHealth> MeasureHealth(ConstTensorView x, const QuantizedTensor& quantized,
                                           ConstTensorView decoded) override {
    ASSIGN_OR_RETURN(x, Wide(0, x));
    return SealedBackend::MeasureHealth(x, quantized, decoded);
  }

 private:
  static Status Overwritten(bool accumulate, TensorView out) {
    if (!accumulate || out.dtype == DType::kF32) return OkStatus();
    return InvalidArgumentError("sums gathered in BF16");
  }
  static Status OneType(std::initializer_list<ConstTensorView> views) {
    for (const ConstTensorView& x : views) {
      if (x.dtype != views.begin()->dtype) return InvalidArgumentError("views of two types");
    }
    return OkStatus();
  }
  // x itself, or its FP32 numbers in the place `slot`.
  Result<ConstTensorView> Wide(size_t slot, ConstTensorView x) {
    if (x.dtype != DType::kBF16) return x;
    ASSIGN_OR_RETURN(const TensorView wide, wide_[slot].View(*this, x.rows, x.cols));
    Enter();
    for (int64_t i = 0; i < x.size(); ++i) {
      wide.f32()[i] = formats::FromBf16(static_cast<const uint16_t*>(x.data)[i]);
    }
    Leave();
    return ConstTensorView(wide);
  }
  // Calls `form` with `out`, or with FP32 memory that is rounded into it.
  template <typename Form>
  Status Narrowing(TensorView out, Form form) {
    if (out.dtype != DType::kBF16) return form(out);
    ASSIGN_OR_RETURN(const TensorView wide, formed_.View(*this, out.rows, out.cols));
    RETURN_IF_ERROR(form(wide));
    Enter();
    for (int64_t i = 0; i < out.size(); ++i) {
      static_cast<uint16_t*>(out.data)[i] = formats::ToBf16(wide.f32()[i]);
    }
    Leave();
    return OkStatus();
  }

  int64_t own_ = 0;
  int64_t& products_;
  int64_t allocations_ = 0;
  std::array<Buffer, 4> wide_;
  Buffer formed_;
};

}  // namespace nibble
