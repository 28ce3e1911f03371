// SPDX-License-Identifier: Apache-2.0
//
// Tensor views and device buffers: how memory of a backend is named.
//
// Purpose: a view is a pointer, a type and a dense row-major shape; nothing in it assumes that the
// host may read the memory. A Buffer owns one allocation of one backend.
// Thread-safety: value types, thread-compatible. Ownership: views borrow, Buffer owns (move-only).
// Invariants: rows, cols >= 0; a vector of n elements is (1, n) or (n, 1): only size() counts.
#pragma once

#include <cstdint>
#include <utility>

#include "base/status.h"

namespace nibble {

enum class DType : uint8_t { kF32, kBF16, kI32, kU8, kF16 };

constexpr int64_t SizeOf(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kU8:
      return 1;
  }
  return 0;
}
const char* DTypeName(DType type);

// Memory the callee may write.
struct TensorView {
  void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::kF32;

  int64_t size() const { return rows * cols; }
  int64_t size_bytes() const { return size() * SizeOf(dtype); }
  float* f32() const { return static_cast<float*>(data); }
  int32_t* i32() const { return static_cast<int32_t*>(data); }
  uint8_t* u8() const { return static_cast<uint8_t*>(data); }
  // Rows [first, first + count). Precondition: inside the view.
  TensorView Rows(int64_t first, int64_t count) const {
    return {static_cast<uint8_t*>(data) + first * cols * SizeOf(dtype), count, cols, dtype};
  }
  TensorView Reshaped(int64_t new_rows, int64_t new_cols) const {
    return {data, new_rows, new_cols, dtype};
  }
};

// Memory the callee only reads.
struct ConstTensorView {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::kF32;

  ConstTensorView() = default;
  ConstTensorView(const void* d, int64_t r, int64_t c, DType t = DType::kF32)
      : data(d), rows(r), cols(c), dtype(t) {}
  ConstTensorView(const TensorView& v)  // NOLINT(google-explicit-constructor)
      : data(v.data), rows(v.rows), cols(v.cols), dtype(v.dtype) {}

  int64_t size() const { return rows * cols; }
  int64_t size_bytes() const { return size() * SizeOf(dtype); }
  const float* f32() const { return static_cast<const float*>(data); }
  const int32_t* i32() const { return static_cast<const int32_t*>(data); }
  const uint8_t* u8() const { return static_cast<const uint8_t*>(data); }
  ConstTensorView Rows(int64_t first, int64_t count) const {
    return {static_cast<const uint8_t*>(data) + first * cols * SizeOf(dtype), count, cols, dtype};
  }
  ConstTensorView Reshaped(int64_t new_rows, int64_t new_cols) const {
    return {data, new_rows, new_cols, dtype};
  }
};

class Backend;

// One allocation of one backend, grown on demand and never shrunk, so that a training step
// allocates nothing after warm-up. The backend must outlive the buffer.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { Reset(); }
  Buffer(Buffer&& other) noexcept { Swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Holds at least `size_bytes` afterwards. The content survives only when nothing had to grow.
  // RESOURCE_EXHAUSTED when the backend has no memory left; the buffer is then empty.
  Status Reserve(Backend& backend, int64_t size_bytes);
  // Reserve for (rows, cols) and a view of it; the content is undefined when the buffer grew.
  Result<TensorView> View(Backend& backend, int64_t rows, int64_t cols, DType type = DType::kF32);
  void Reset();

  void* data() const { return data_; }
  int64_t capacity_bytes() const { return capacity_bytes_; }

 private:
  void Swap(Buffer& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(capacity_bytes_, other.capacity_bytes_);
  }
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  int64_t capacity_bytes_ = 0;
};

}  // namespace nibble
