// SPDX-License-Identifier: Apache-2.0
//
// Compiled, not run: every element format, scale rule and estimator inside a device kernel, with
// the same headers the host uses.
#include "kernels/formats/bf16.h"
#include "kernels/formats/block_scales.h"
#include "kernels/formats/dge.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/e8m0.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/grids.h"
#include "kernels/formats/hadamard.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scales.h"
#include "kernels/formats/surrogates.h"

namespace nibble::formats {

template <typename Grid>
__device__ float AllRoundings(float y, uint32_t word) {
  return RoundNearest<Grid>(y, TieRule::kAway) + RoundSr24<Grid>(y, word) + RoundTe8<Grid>(y, word);
}

__global__ void AllScalesKernel(const float* x, float* out, uint8_t* codes, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const float y = x[i];
  const uint32_t word = RandomWord(1, 2, 3, static_cast<uint64_t>(i));
  const OuterScale nv = NvOuter(y, 448.0f, 6.0f);
  const OuterScale u53 = U53Outer(y, 448.0f, 6.0f);
  const GroupScale groups[] = {
      QuartetGroup(static_cast<double>(y)),
      ThreeQuarterGroup(y),
      QuestGroup(static_cast<double>(y), 2.5f, 7.5f),
      NvGroup(y, nv, 6.0f, 4.0f, true, ScaleRounding::kEven, word),
      U53Group(y, u53, 6.0f, 6.0f, ScaleRounding::kStochastic, word),
      QuartetTwoGroup(y, QuartetTwoOuter(y, 448.0f, 6.0f), 6.0f, 6.0f),
      EdenGroup(y, EdenOuter(y, 255.99f, 6.07f), 6.07f),
      EdenKernelGroup(y, 6.07f),
  };
  float sum = EdenStochasticScale(y, word) * EdenCorrection(1.0, 2.0);
  uint8_t code = 0;
  for (const GroupScale& group : groups) {
    sum += group.enc + group.scale;
    code ^= group.code;
  }
  sum += AllRoundings<E2M1Grid>(y, word) + AllRoundings<E1M2Grid>(y, word) +
         AllRoundings<E3M0Grid>(y, word) + AllRoundings<E4M3Grid>(y, word) +
         AllRoundings<E5M2Grid>(y, word) + AllRoundings<Int4Grid>(y, word) +
         AllRoundings<Int8Grid>(y, word);
  sum += RoundInt4Centred(y) + RoundInt4CentredSr24(y, word) + FixedSign(i);
  sum += DecodeE1M2(code) + DecodeE3M0(code) + DecodeInt4(code) + DecodeInt8(code) +
         DecodeInt4Centred(code);
  sum += PowerDerivative(y, 0.2) + SplineDerivative(y) + SigmoidDerivative(y, 0.5) +
         DgeExtrapolated(y, 0.2, 3.0);
  float pair[2] = {sum, y};
  HadamardInPlace<1>(pair, 2);
  codes[i] = E1M2CodeOfGridValue(y) ^ E3M0CodeOfGridValue(y) ^ Int4CodeOfGridValue(y) ^
             Int8CodeOfGridValue(y) ^ Int4CentredCodeOfGridValue(y) ^ code;
  out[i] = pair[0] + pair[1];
}

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
