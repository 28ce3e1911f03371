// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/code_carrier.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kOuterFp8Step = 16;  // every size of such a product is a multiple of it
constexpr int64_t kBlockStep = 32;
constexpr int kBlockFp8Group = 32, kBlockFp4Group = 16;

bool Grouped(const QuantizedTensor& x) {
  return x.block == Block::kGroup || x.block == Block::kTile;
}
bool PowerOfTwoScale(ScaleRule rule) {
  return rule == ScaleRule::kP2 || rule == ScaleRule::kCurrentP2;
}
bool E8M0Scale(ScaleRule rule) {
  return rule == ScaleRule::kE8Floor || rule == ScaleRule::kE8Up || rule == ScaleRule::kQuartet ||
         rule == ScaleRule::kA34;
}
// The group scales are values of their own small format, one FP32 number above them. Quartet II's
// simulation, the one rule nv that divides by nothing, keeps products of the two instead.
bool SmallScales(const QuantizedTensor& x) {
  const bool simulated = x.scale == ScaleRule::kNv && x.outer_divisor == 1.0f;
  return x.has_group_scale && x.outer == Outer::kTensor && !simulated;
}
// An element times its group's scale has at most the eight significant bits of BF16.
bool FitsBf16(const QuantizedTensor& x) {
  if (!Grouped(x)) return true;
  return SmallScales(x) || (!x.has_group_scale && PowerOfTwoScale(x.scale));
}

// FP8 bytes hold every code, outliers included. A wide integer of seven significant bits is not
// among their values; split into two that are, it would cost two products, as much as one of BF16.
bool FitsBytes(const QuantizedTensor& x) {
  return x.comp == OccComp::kNone || x.comp == OccComp::kWideE4M3;
}

bool FitsOuterFp8(const QuantizedTensor& x) {
  const bool elem = x.elem == Elem::kE2M1 || x.elem == Elem::kE4M3 || x.elem == Elem::kE5M2;
  // An E4M3 residual is a second product of the same kind.
  return elem && !Grouped(x) && (FitsBytes(x) || x.comp == OccComp::kE4M3);
}
bool FitsBlockFp8(const QuantizedTensor& x) {
  if (x.elem != Elem::kE2M1 && x.elem != Elem::kE4M3) return false;
  if (!Grouped(x)) return FitsBytes(x);
  return x.group == kBlockFp8Group && E8M0Scale(x.scale);
}
bool FitsBlockFp4(const QuantizedTensor& x) {
  if (x.elem != Elem::kE2M1) return false;
  if (!Grouped(x)) return x.comp == OccComp::kNone;
  const bool e4m3 = x.scale == ScaleRule::kNv || x.scale == ScaleRule::kEden;
  return x.group == kBlockFp4Group && e4m3 && SmallScales(x);
}

}  // namespace

const char* CodeCarrierName(CodeCarrier carrier) {
  static constexpr const char* kNames[] = {"fp32", "bf16", "fp8", "mxfp8", "nvfp4"};
  return kNames[static_cast<int>(carrier)];
}

CodeCarrier ChooseCarrier(const NarrowProducts& device, Support path, const QuantizedTensor& a,
                          const QuantizedTensor& b, int64_t m, int64_t n, int64_t k) {
  if (path == Support::kReference) return CodeCarrier::kF32;
  const auto steps = [&](int64_t step) { return m % step == 0 && n % step == 0 && k % step == 0; };
  if (device.block_fp4 && steps(kBlockStep) && FitsBlockFp4(a) && FitsBlockFp4(b)) {
    return CodeCarrier::kBlockFp4;
  }
  if (device.block_fp8 && steps(kBlockStep) && FitsBlockFp8(a) && FitsBlockFp8(b)) {
    return CodeCarrier::kBlockFp8;
  }
  const bool both_e5m2 = a.elem == Elem::kE5M2 && b.elem == Elem::kE5M2;
  if (device.outer_fp8 && steps(kOuterFp8Step) && FitsOuterFp8(a) && FitsOuterFp8(b) &&
      !both_e5m2) {
    return CodeCarrier::kOuterFp8;
  }
  return FitsBf16(a) && FitsBf16(b) ? CodeCarrier::kBf16 : CodeCarrier::kF32;
}

bool LiesAsCarried(const QuantizedTensor& x, CodeCarrier carrier, bool transposed) {
  if (transposed || (x.comp != OccComp::kNone && x.comp != OccComp::kE4M3)) return false;
  if (carrier == CodeCarrier::kBlockFp4) return x.elem == Elem::kE2M1;
  const bool bytes = carrier == CodeCarrier::kOuterFp8 || carrier == CodeCarrier::kBlockFp8;
  return bytes && (x.elem == Elem::kE4M3 || x.elem == Elem::kE5M2);
}

CarriedPlace LeftPlace(Transpose transpose_a) {
  return transpose_a == Transpose::kYes ? CarriedPlace::kLeftTurned : CarriedPlace::kLeft;
}

CarriedPlace RightPlace(Transpose transpose_a, Transpose transpose_b) {
  if (transpose_b == Transpose::kYes) return CarriedPlace::kForward;
  return transpose_a == Transpose::kYes ? CarriedPlace::kWeightGradient
                                        : CarriedPlace::kInputGradient;
}

}  // namespace nibble::cuda
