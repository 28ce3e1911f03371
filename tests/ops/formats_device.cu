// SPDX-License-Identifier: Apache-2.0
//
// Compiled, not run: every element format, scale rule and estimator inside a device kernel, with
// the same headers the host uses.
#include "kernels/formats/bf16.h"
#include "kernels/formats/dge.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/e8m0.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scales.h"

namespace nibble::formats {

__global__ void AllFormatsKernel(const float* x, float* out, uint8_t* codes, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const float y = RoundBf16(x[i]);
  const uint32_t word = RandomWord(1, 2, 3, static_cast<uint64_t>(i));
  codes[i] = EncodeE2M1(y) ^ EncodeE4M3(y) ^ EncodeE5M2(y) ^ EncodeUE5M3(y);
  float sum = RoundE2M1(y, TieRule::kHalfUp) + RoundE2M1Sr24(y, word) + RoundE2M1Te8(y, word);
  sum += ScaleF32(y, 6.0f) + ScaleP2(y, 448.0f) + ScaleCurrent(y, 448.0f, true);
  sum += DecodeE8M0(E8M0UpScale(y, 6.0f)) + DecodeE8M0(E8M0FloorScale(y, 2));
  sum += DgeDerivative(y, 0.2, 3.0) + OccClamp(y, -1.0f, 1.0f);
  sum += static_cast<float>(OccIndices(0.99, n).low) +
         ScaleDelayed(x, n, 6.0f, HistoryRule::kMax, 0, 1.0f);
  sum += DecodeE2M1(codes[i] & 15) + DecodeE4M3(codes[i]) + DecodeE5M2(codes[i]) +
         DecodeUE5M3(codes[i]);
  out[i] = sum;
}

}  // namespace nibble::formats
