// SPDX-License-Identifier: Apache-2.0
//
// AVX-512VL VNNI on 256-bit vectors: runs the code of avx_vnni.cc where only AVX-512 has vpdpbusd.
#include <immintrin.h>

#define NIBBLE_DPBUSD(sum, u8, s8) _mm256_dpbusd_epi32(sum, u8, s8)
#include "kernels/cpu/codes/vnni256.h"

namespace nibble::cpu::codes {

const KernelSet& Vnni256Kernels() {
  static constexpr KernelSet kSet{"vnni256",
                                  kOuter,
                                  1,
                                  kGrouped,
                                  1,
                                  ExpandAvx2,
                                  ScatterAlongAvx2,
                                  ScatterAcrossAvx2,
                                  FinishTile<int32_t, kRows, kCols>,
                                  FinishTile<float, kRows, kCols>,
                                  CorrectVectors<Words8, Codes8, DotCells, 3, 3>};
  return kSet;
}

}  // namespace nibble::cpu::codes
