// SPDX-License-Identifier: Apache-2.0
//
// AVX-VNNI: VEX-encoded vpdpbusd, on client processors without AVX-512.
#include <immintrin.h>

#define NIBBLE_DPBUSD(sum, u8, s8) _mm256_dpbusd_avx_epi32(sum, u8, s8)
#include "kernels/cpu/codes/vnni256.h"

namespace nibble::cpu::codes {

const KernelSet& AvxVnniKernels() {
  static constexpr KernelSet kSet{"avxvnni",
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
