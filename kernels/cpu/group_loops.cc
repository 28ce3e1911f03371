// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/group_loops.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/random_words.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/grids.h"
#include "kernels/formats/philox.h"

namespace nibble::cpu {
namespace {

using formats::TieRule;

constexpr int64_t kRandomRun = 512;

template <typename Grid>
inline void NearestLoop(TieRule rule, const float* y, float* grid, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundNearest<Grid>(y[i], rule);
}

template <typename Grid>
inline void RoundLoop(Round round, const float* y, const uint32_t* words, float* grid, int64_t n) {
  switch (round) {
    case Round::kEven:
      return NearestLoop<Grid>(TieRule::kEven, y, grid, n);
    case Round::kHalfUp:
      return NearestLoop<Grid>(TieRule::kHalfUp, y, grid, n);
    case Round::kAway:
      return NearestLoop<Grid>(TieRule::kAway, y, grid, n);
    case Round::kZero:
      return NearestLoop<Grid>(TieRule::kZero, y, grid, n);
    case Round::kSr24:
      for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundSr24<Grid>(y[i], words[i]);
      return;
    case Round::kTe8:
      for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundTe8<Grid>(y[i], words[i]);
      return;
  }
}

NIBBLE_LOOP void RoundE2M1Run(Round round, const float* y, const uint32_t* words, float* grid,
                              int64_t n) {
  if (round != Round::kEven) return RoundLoop<formats::E2M1Grid>(round, y, words, grid, n);
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundE2M1Even(y[i]);
}
NIBBLE_LOOP void RoundE4M3Run(Round round, const float* y, const uint32_t* words, float* grid,
                              int64_t n) {
  if (round != Round::kEven) return RoundLoop<formats::E4M3Grid>(round, y, words, grid, n);
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundE4M3(y[i]);
}
NIBBLE_LOOP void RoundE5M2Run(Round round, const float* y, const uint32_t* words, float* grid,
                              int64_t n) {
  if (round != Round::kEven) return RoundLoop<formats::E5M2Grid>(round, y, words, grid, n);
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundE5M2(y[i]);
}
NIBBLE_LOOP void RoundInt8Run(Round round, const float* y, const uint32_t* words, float* grid,
                              int64_t n) {
  RoundLoop<formats::Int8Grid>(round, y, words, grid, n);
}
NIBBLE_LOOP void RoundInt4CentredRun(Round round, const float* y, const uint32_t* words,
                                     float* grid, int64_t n) {
  if (round == Round::kSr24) {
    for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundInt4CentredSr24(y[i], words[i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) grid[i] = formats::RoundInt4Centred(y[i]);
}

NIBBLE_LOOP void MultiplyRun(float factor, const float* x, float* y, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor;
}
NIBBLE_LOOP void DivideRun(float divisor, const float* x, float* y, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] / divisor;
}
NIBBLE_LOOP void TwoLevelRun(float scale, float outer, float divisor, const float* grid,
                             float* decoded, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) decoded[i] = ((grid[i] * scale) * outer) / divisor;
}

// Through a small square: every cache line is read and written once, whatever the strides.
template <typename T>
void TransposeRows(const T* from, int64_t rows, int64_t cols, int64_t first, int64_t last, T* to) {
  constexpr int64_t kSide = 16;
  T square[kSide][kSide];
  for (int64_t c0 = first; c0 < last; c0 += kSide) {
    const int64_t width = std::min(kSide, last - c0);
    for (int64_t r0 = 0; r0 < rows; r0 += kSide) {
      const int64_t height = std::min(kSide, rows - r0);
      for (int64_t r = 0; r < height; ++r) {
        const T* row = from + (r0 + r) * cols + c0;
        for (int64_t c = 0; c < width; ++c) square[c][r] = row[c];
      }
      for (int64_t c = 0; c < width; ++c) std::copy_n(square[c], height, to + (c0 + c) * rows + r0);
    }
  }
}

template <uint8_t (*code)(float)>
inline void CodeLoop(const float* grid, uint8_t* bytes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) bytes[i] = code(grid[i]);
}
template <float (*decode)(uint8_t)>
inline void GridLoop(const uint8_t* bytes, float* grid, int64_t n) {
  for (int64_t i = 0; i < n; ++i) grid[i] = decode(bytes[i]);
}

NIBBLE_LOOP uint32_t AmaxBits(const float* x, int64_t n) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < n; ++i) bits = formats::AmaxUpdate(bits, x[i]);
  return bits;
}
NIBBLE_LOOP void RoundBf16Loop(const float* x, float* y, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = formats::RoundBf16(x[i]);
}

}  // namespace

uint32_t RunAmaxBits(const float* x, int64_t n) { return Cloned<AmaxBits>(x, n); }

double RunDeviation(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
  const double mean = sum / static_cast<double>(n);
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double centred = static_cast<double>(x[i]) - mean;
    squares += centred * centred;
  }
  return std::sqrt(squares / static_cast<double>(n));
}

double RunSumOfSquares(const float* x, int64_t n) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return squares;
}

void ScaleRun(bool divides, float enc, const float* x, float* y, int64_t n) {
  return divides ? Cloned<DivideRun>(enc, x, y, n) : Cloned<MultiplyRun>(enc, x, y, n);
}

void RoundRun(Elem elem, Round round, const float* y, const uint32_t* words, float* grid,
              int64_t n) {
  switch (elem) {
    case Elem::kE2M1:
      return Cloned<RoundE2M1Run>(round, y, words, grid, n);
    case Elem::kE4M3:
      return Cloned<RoundE4M3Run>(round, y, words, grid, n);
    case Elem::kE5M2:
      return Cloned<RoundE5M2Run>(round, y, words, grid, n);
    case Elem::kE1M2:
      return RoundLoop<formats::E1M2Grid>(round, y, words, grid, n);
    case Elem::kE3M0:
      return RoundLoop<formats::E3M0Grid>(round, y, words, grid, n);
    case Elem::kInt4:
      return RoundLoop<formats::Int4Grid>(round, y, words, grid, n);
    case Elem::kInt8:
      return Cloned<RoundInt8Run>(round, y, words, grid, n);
    case Elem::kInt4C:
      return Cloned<RoundInt4CentredRun>(round, y, words, grid, n);
    default:
      return RoundBf16Run(y, grid, n);
  }
}

void CodesOfRun(Elem elem, const float* grid, uint8_t* bytes, int64_t n) {
  switch (elem) {
    case Elem::kE2M1:
      return CodeLoop<formats::E2M1CodeOfGridValue>(grid, bytes, n);
    case Elem::kE5M2:
      return CodeLoop<formats::E5M2CodeOfGridValue>(grid, bytes, n);
    case Elem::kE1M2:
      return CodeLoop<formats::E1M2CodeOfGridValue>(grid, bytes, n);
    case Elem::kE3M0:
      return CodeLoop<formats::E3M0CodeOfGridValue>(grid, bytes, n);
    case Elem::kInt4:
      return CodeLoop<formats::Int4CodeOfGridValue>(grid, bytes, n);
    case Elem::kInt8:
      return CodeLoop<formats::Int8CodeOfGridValue>(grid, bytes, n);
    case Elem::kInt4C:
      return CodeLoop<formats::Int4CentredCodeOfGridValue>(grid, bytes, n);
    default:
      return CodeLoop<formats::E4M3CodeOfGridValue>(grid, bytes, n);
  }
}

void GridOfRun(Elem elem, const uint8_t* bytes, float* grid, int64_t n) {
  switch (elem) {
    case Elem::kE2M1:
      return GridLoop<formats::DecodeE2M1>(bytes, grid, n);
    case Elem::kE5M2:
      return GridLoop<formats::DecodeE5M2>(bytes, grid, n);
    case Elem::kE1M2:
      return GridLoop<formats::DecodeE1M2>(bytes, grid, n);
    case Elem::kE3M0:
      return GridLoop<formats::DecodeE3M0>(bytes, grid, n);
    case Elem::kInt4:
      return GridLoop<formats::DecodeInt4>(bytes, grid, n);
    case Elem::kInt8:
      return GridLoop<formats::DecodeInt8>(bytes, grid, n);
    case Elem::kInt4C:
      return GridLoop<formats::DecodeInt4Centred>(bytes, grid, n);
    default:
      return GridLoop<formats::DecodeE4M3>(bytes, grid, n);
  }
}

void PackCodes(Elem elem, const uint8_t* bytes, uint8_t* packed, int64_t n) {
  if (ElemBits(elem) == 8) {
    std::copy_n(bytes, n, packed);
    return;
  }
  for (int64_t i = 0; i + 1 < n; i += 2) packed[i / 2] = formats::PackE2M1(bytes[i], bytes[i + 1]);
  if (n % 2 != 0) packed[n / 2] = bytes[n - 1];
}

void UnpackCodes(Elem elem, const uint8_t* packed, uint8_t* bytes, int64_t n) {
  if (ElemBits(elem) == 8) {
    std::copy_n(packed, n, bytes);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    bytes[i] = static_cast<uint8_t>(i % 2 == 0 ? packed[i / 2] & 15u : packed[i / 2] >> 4);
  }
}

void DecodeRun(const RunDecoder& decoder, const float* grid, float* decoded, int64_t n) {
  switch (decoder.kind) {
    case RunDecoder::Kind::kPlain:
      return Cloned<MultiplyRun>(1.0f, grid, decoded, n);
    case RunDecoder::Kind::kDivide:
      return Cloned<DivideRun>(decoder.scale, grid, decoded, n);
    case RunDecoder::Kind::kMultiply:
      return Cloned<MultiplyRun>(decoder.scale, grid, decoded, n);
    case RunDecoder::Kind::kTwoLevel:
      if (decoder.outer == 1.0f && decoder.divisor == 1.0f) {
        return Cloned<MultiplyRun>(decoder.scale, grid, decoded, n);
      }
      return Cloned<TwoLevelRun>(decoder.scale, decoder.outer, decoder.divisor, grid, decoded, n);
  }
}

void RoundBf16Run(const float* x, float* y, int64_t n) { Cloned<RoundBf16Loop>(x, y, n); }

void RandomWords(const QuantizeContext& context, Round round, int64_t first, int64_t stride,
                 uint32_t* words, int64_t n) {
  const RandomStream stream{context.seed, context.step, context.stream};
  const bool bytes = round == Round::kTe8;
  if (context.replay == nullptr && stride == 1 && n <= kRandomRun) {
    uint32_t drawn[kRandomRun + 8];
    const uint64_t start = static_cast<uint64_t>(first);
    if (!bytes) {
      std::copy_n(RandomRun(stream, start, n, drawn), n, words);
      return;
    }
    const int64_t count = (first + n - 1) / 4 - first / 4 + 1;
    const uint32_t* shared = RandomRun(stream, start / 4, count, drawn);
    for (int64_t i = 0; i < n; ++i) {
      words[i] = (shared[(first + i) / 4 - first / 4] >> (8 * ((first + i) % 4))) & 0xFFu;
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t element = static_cast<uint64_t>(first + i * stride);
    if (context.replay != nullptr) {
      words[i] = context.replay->Word(context.stream, element);
    } else if (bytes) {
      words[i] = formats::RandomByte(stream.seed, stream.step, stream.stream, element);
    } else {
      words[i] = formats::RandomWord(stream.seed, stream.step, stream.stream, element);
    }
  }
}

void TransposeBytes(const uint8_t* from, int64_t rows, int64_t cols, int64_t first, int64_t last,
                    uint8_t* to) {
  TransposeRows(from, rows, cols, first, last, to);
}
void TransposeFloats(const float* from, int64_t rows, int64_t cols, int64_t first, int64_t last,
                     float* to) {
  TransposeRows(from, rows, cols, first, last, to);
}

}  // namespace nibble::cpu
