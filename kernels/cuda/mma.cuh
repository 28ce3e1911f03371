// SPDX-License-Identifier: Apache-2.0
//
// Tensor-core operations of a warp (sm_80 and newer): BF16 products, matrix loads, asynchronous
// copies. PTX ISA 9, sections "mma.m16n8k16", "ldmatrix", "cp.async".
//
// Purpose: the one place with PTX. Fragments of mma.m16n8k16, lane = 4 * g + t:
//   A (16, 16): a0 (g, 2t..2t+1), a1 (g + 8, 2t..), a2 (g, 2t + 8..), a3 (g + 8, 2t + 8..)
//   B (16, 8): b0 (2t..2t+1, g), b1 (2t + 8.., g)     C (16, 8): c0, c1 (g, 2t..), c2, c3 (g + 8,
//   ..)
// The emulator of tests/ops gives the same functions. Thread-safety: whole warps call together.
#pragma once

#if defined(__CUDACC__)

#include <cstdint>

namespace nibble::cuda {

// c += A B, BF16 products summed in FP32.
__device__ inline void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit values in shared memory; lane i points at row i % 8 of matrix i / 8,
// 16-byte aligned. r[m]: elements (lane / 4, 2 * (lane % 4)) and the next of matrix m.
__device__ inline void LoadMatrices(uint32_t (&r)[4], const uint16_t* row) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
// The same of the transposed matrices: r[m] holds (2 * (lane % 4), lane / 4) and the row below.
__device__ inline void LoadMatricesTransposed(uint32_t (&r)[4], const uint16_t* row) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// 16 bytes to shared memory, zeros unless `live`; done after Commit and Wait.
__device__ inline void CopyAsync16(void* shared, const void* global, bool live) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = live ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(at), "l"(global), "r"(bytes)
               : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kPending groups of this thread are under way.
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two BF16 values, rounded to nearest even, low in the low half.
__device__ inline uint32_t PackBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2^x by the special function unit: relative error below 2^-22, results below 2^-126 are zero.
__device__ inline float Exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Dynamic shared memory of the block.
__device__ inline void* SharedMemory() {
  extern __shared__ __align__(16) unsigned char nibble_shared[];
  return nibble_shared;
}

}  // namespace nibble::cuda

#endif
