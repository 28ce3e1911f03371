// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/quantize_loops.h"

#include "kernels/cpu/vector_math.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/dge.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"

namespace nibble::cpu {
namespace {

NIBBLE_LOOP uint32_t AmaxBits(const float* x, int64_t n) {
  uint32_t lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = formats::AmaxUpdate(lanes[l], x[i + l]);
  }
  for (; i < n; ++i) lanes[0] = formats::AmaxUpdate(lanes[0], x[i]);
  for (int l = 1; l < kLanes; ++l) lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
  return lanes[0];
}

struct ClampedStats {
  uint32_t amax[kLanes];
  uint32_t residual[kLanes];
  int32_t count[kLanes];
};

inline void UpdateClamped(float x, float low, float high, ClampedStats* stats, int lane) {
  const float value = formats::RoundBf16(x);
  const float clamped = formats::OccClamp(value, low, high);
  stats->amax[lane] = formats::AmaxUpdate(stats->amax[lane], clamped);
  stats->residual[lane] = formats::AmaxUpdate(stats->residual[lane], value - clamped);
  stats->count[lane] += static_cast<int32_t>(value < low) | static_cast<int32_t>(value > high);
}

NIBBLE_LOOP void ClampedLanes(const float* x, int64_t n, float low, float high, ClampedStats* out) {
  ClampedStats stats = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) UpdateClamped(x[i + l], low, high, &stats, l);
  }
  for (; i < n; ++i) UpdateClamped(x[i], low, high, &stats, 0);
  *out = stats;
}

NIBBLE_LOOP void RoundE4M3Loop(const float* y, float* grid, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundE4M3(y[i]);
}
NIBBLE_LOOP void RoundE5M2Loop(const float* y, float* grid, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundE5M2(y[i]);
}

// Tie rules other than even, and te8: plain loops, used by ablations.
void RoundE2M1Other(Round round, const RandomPosition& random, const float* y, float* grid,
                    int64_t n) {
  const QuantizeContext& c = random.context;
  for (int64_t i = 0; i < n; ++i) {
    const auto element = static_cast<uint64_t>(random.first_element + i * random.stride);
    switch (round) {
      case Round::kHalfUp:
        grid[i] = formats::RoundE2M1(y[i], formats::TieRule::kHalfUp);
        break;
      case Round::kAway:
        grid[i] = formats::RoundE2M1(y[i], formats::TieRule::kAway);
        break;
      case Round::kZero:
        grid[i] = formats::RoundE2M1(y[i], formats::TieRule::kZero);
        break;
      default:
        grid[i] =
            formats::RoundE2M1Te8(y[i], formats::RandomByte(c.seed, c.step, c.stream, element));
        break;
    }
  }
}

NIBBLE_LOOP void E2M1Codes(const float* grid, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) codes[i] = formats::E2M1CodeOfGridValue(grid[i]);
}
NIBBLE_LOOP void E4M3Codes(const float* grid, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) codes[i] = formats::E4M3CodeOfGridValue(grid[i]);
}
NIBBLE_LOOP void E5M2Codes(const float* grid, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) codes[i] = formats::E5M2CodeOfGridValue(grid[i]);
}
NIBBLE_LOOP void PackPairs(const uint8_t* codes, uint8_t* packed, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
  }
}
NIBBLE_LOOP void UnpackPairs(const uint8_t* packed, float* grid, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    grid[2 * i] = formats::DecodeE2M1(packed[i] & 15u);
    grid[2 * i + 1] = formats::DecodeE2M1(packed[i] >> 4);
  }
}
NIBBLE_LOOP void E4M3Grid(const uint8_t* codes, float* grid, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::DecodeE4M3(codes[i]);
}
NIBBLE_LOOP void E5M2Grid(const uint8_t* codes, float* grid, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::DecodeE5M2(codes[i]);
}
NIBBLE_LOOP void Int8Grid(const uint8_t* codes, float* grid, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grid[i] = static_cast<float>(static_cast<int8_t>(codes[i]));
}
NIBBLE_LOOP void DivideColumns(const float* grid, const float* enc, float* decoded, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) decoded[i] = grid[i] / enc[i];
}
NIBBLE_LOOP void MultiplyColumns(const float* grid, const float* enc, float* decoded, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) decoded[i] = grid[i] * (1.0f / enc[i]);
}
// What a folded value is multiplied by to be x again.
inline float UnfoldFactor(float fold) { return formats::IsFinite(fold) ? fold : 0.0f; }
NIBBLE_LOOP void UnfoldColumnsLoop(const float* fold, float* decoded, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) decoded[i] = decoded[i] * UnfoldFactor(fold[i]);
}
NIBBLE_LOOP void DivideLoop(const float* grid, float enc, float* decoded, int64_t n) {
  for (int64_t i = 0; i < n; ++i) decoded[i] = grid[i] / enc;
}
NIBBLE_LOOP void MultiplyLoop(const float* grid, float dec, float* decoded, int64_t n) {
  for (int64_t i = 0; i < n; ++i) decoded[i] = grid[i] * dec;
}
NIBBLE_LOOP void KeysLoop(const float* x, uint16_t* keys, int64_t n) {
  for (int64_t i = 0; i < n; ++i) keys[i] = formats::Bf16OrderKey(formats::ToBf16(x[i]));
}
// DgeOfWeight in stages: one loop would be a chain of 40 dependent operations, too long for the
// processor to overlap with the next.
template <bool kAccumulate>
NIBBLE_LOOP void DgeLoop(const formats::DgeConstants& constants, float enc, const float* product,
                         const float* weight, float* gradient, int64_t n) {
  const formats::DgeConstants c = constants;
  float a[kSegment], offset[kSegment], whole[kSegment], part[kSegment];
  for (int64_t i = 0; i < n; ++i) {
    a[i] = formats::DgeAxisMagnitude(weight[i], enc);
    offset[i] = formats::DgeOffset(a[i]);
  }
  for (int64_t i = 0; i < n; ++i) {
    const formats::Log2Parts log2 = formats::DgeLog2(c, offset[i]);
    whole[i] = log2.whole;
    part[i] = log2.part;
  }
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float inside = formats::DgeClipped(c, {whole[i], part[i]});
    const float before = kAccumulate ? gradient[i] : 0.0f;
    gradient[i] = before + product[i] * formats::DgeOfMagnitude(weight[i], a[i], inside);
  }
}

}  // namespace

void MeasurePlain(const float* x, int64_t n, RowStats* stats) {
  // Rounding is monotone, so the amax of the rounded values is the rounded amax.
  const float amax = formats::BitsFloat(Cloned<AmaxBits>(x, n));
  stats->amax_bits = formats::FloatBits(formats::RoundBf16(amax));
  stats->residual_amax_bits = 0;
  stats->residual_count = 0;
}

void MeasureClamped(const float* x, int64_t n, RowStats* stats) {
  ClampedStats lanes;
  Cloned<ClampedLanes>(x, n, stats->low, stats->high, &lanes);
  stats->amax_bits = 0;
  stats->residual_amax_bits = 0;
  stats->residual_count = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (lanes.amax[l] > stats->amax_bits) stats->amax_bits = lanes.amax[l];
    if (lanes.residual[l] > stats->residual_amax_bits) {
      stats->residual_amax_bits = lanes.residual[l];
    }
    stats->residual_count += lanes.count[l];
  }
}

void RoundSegment(const Quant& quant, const RandomPosition& random, const float* y, float* grid,
                  int64_t n) {
  switch (quant.elem) {
    case Elem::kE2M1:
      return RoundE2M1Other(quant.round, random, y, grid, n);
    case Elem::kE4M3:
      return Cloned<RoundE4M3Loop>(y, grid, n);
    case Elem::kE5M2:
      return Cloned<RoundE5M2Loop>(y, grid, n);
    default:  // bf16: rounded when it was scaled by 1
      for (int64_t i = 0; i < n; ++i) grid[i] = y[i];
  }
}

void EncodeSegment(Elem elem, const float* grid, uint8_t* codes, int64_t n) {
  switch (elem) {
    case Elem::kE2M1: {
      uint8_t wide[kSegment];
      Cloned<E2M1Codes>(grid, wide, n);
      Cloned<PackPairs>(wide, codes, n / 2);
      if (n % 2 != 0) codes[n / 2] = wide[n - 1];
      return;
    }
    case Elem::kE4M3:
      return Cloned<E4M3Codes>(grid, codes, n);
    case Elem::kE5M2:
      return Cloned<E5M2Codes>(grid, codes, n);
    default:  // bf16, fp32
      for (int64_t i = 0; i < n; ++i) {
        const uint16_t bits = formats::ToBf16(grid[i]);
        std::memcpy(codes + 2 * i, &bits, sizeof(bits));
      }
      return;
  }
}

void GridFromCodes(Elem elem, const uint8_t* codes, float* grid, int64_t n) {
  switch (elem) {
    case Elem::kE2M1:
      Cloned<UnpackPairs>(codes, grid, n / 2);
      if (n % 2 != 0) grid[n - 1] = formats::DecodeE2M1(codes[n / 2] & 15u);
      return;
    case Elem::kE4M3:
      return Cloned<E4M3Grid>(codes, grid, n);
    case Elem::kE5M2:
      return Cloned<E5M2Grid>(codes, grid, n);
    case Elem::kInt8:
      return Cloned<Int8Grid>(codes, grid, n);
    default:  // bf16, fp32
      for (int64_t i = 0; i < n; ++i) {
        uint16_t bits;
        std::memcpy(&bits, codes + 2 * i, sizeof(bits));
        grid[i] = formats::FromBf16(bits);
      }
      return;
  }
}

void DecodeSegment(ScaleRule scale, float enc, const float* grid, float* decoded, int64_t n) {
  switch (scale) {
    case ScaleRule::kNone:
      return Cloned<MultiplyLoop>(grid, 1.0f, decoded, n);
    case ScaleRule::kF32:
      return Cloned<DivideLoop>(grid, enc, decoded, n);
    default:  // 1/enc is exact for powers of two, and the rule for cur
      return Cloned<MultiplyLoop>(grid, 1.0f / enc, decoded, n);
  }
}

void DecodeColumns(ScaleRule scale, const float* enc, const float* grid, float* decoded,
                   int64_t n) {
  if (scale == ScaleRule::kF32) return Cloned<DivideColumns>(grid, enc, decoded, n);
  Cloned<MultiplyColumns>(grid, enc, decoded, n);
}

void UnfoldRow(float fold, float* decoded, int64_t n) {
  Cloned<MultiplyLoop>(decoded, UnfoldFactor(fold), decoded, n);
}
void UnfoldColumns(const float* fold, float* decoded, int64_t n) {
  Cloned<UnfoldColumnsLoop>(fold, decoded, n);
}

void OrderKeys(const float* x, uint16_t* keys, int64_t n) { Cloned<KeysLoop>(x, keys, n); }

void DgeSegment(double inverse_k, double clip, float enc, bool accumulate, const float* product,
                const float* weight, float* gradient, int64_t n) {
  const formats::DgeConstants constants(inverse_k, clip);
  for (int64_t first = 0; first < n; first += kSegment) {
    const int64_t count = n - first < kSegment ? n - first : kSegment;
    if (accumulate) {
      Cloned<DgeLoop<true>>(constants, enc, product + first, weight + first, gradient + first,
                            count);
    } else {
      Cloned<DgeLoop<false>>(constants, enc, product + first, weight + first, gradient + first,
                             count);
    }
  }
}

}  // namespace nibble::cpu
