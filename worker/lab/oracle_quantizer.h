// SPDX-License-Identifier: Apache-2.0
//
// OracleQuantizer: scales and roundings of RecipeOracle for one matrix whose contraction runs along
// its lines. Tests only; include once.
// Thread-safety: value types and pure functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "kernels/formats/philox.h"
#include "worker/lab/oracle_grid.h"
#include "worker/lab/recipe_oracle.h"

namespace nibble::oracle {

struct Lines {
  int64_t lines = 0, depth = 0;
  std::vector<double> v;
  double& at(int64_t l, int64_t p) { return v[static_cast<size_t>(l * depth + p)]; }
  double at(int64_t l, int64_t p) const { return v[static_cast<size_t>(l * depth + p)]; }
};

inline bool TurnsRows(Slot slot) {
  return slot == Slot::kWd || slot == Slot::kGw || slot == Slot::kXw;
}

inline Lines Turn(bool turned, const std::vector<double>& stored, int64_t rows, int64_t cols) {
  Lines out{turned ? cols : rows, turned ? rows : cols, stored};
  for (int64_t l = 0; turned && l < out.lines; ++l) {
    for (int64_t p = 0; p < out.depth; ++p) {
      out.at(l, p) = stored[static_cast<size_t>(p * cols + l)];
    }
  }
  return out;
}
template <typename T>
std::vector<T> TurnBack(bool turned, const std::vector<T>& v, int64_t lines, int64_t depth) {
  if (!turned) return v;
  std::vector<T> stored(v.size());
  for (int64_t l = 0; l < lines; ++l) {
    for (int64_t p = 0; p < depth; ++p) {
      stored[static_cast<size_t>(p * lines + l)] = v[static_cast<size_t>(l * depth + p)];
    }
  }
  return stored;
}

// The scale group of an element.
inline int64_t GroupOf(const Quant& q, Slot slot, const Lines& x, int64_t l, int64_t p) {
  const bool weight = slot == Slot::kWf || slot == Slot::kWd;
  const bool turned = TurnsRows(slot);
  const int64_t per_line = q.group > 0 ? (x.depth + q.group - 1) / q.group : 0;
  switch (q.block) {
    case Block::kTensor:
      return 0;
    case Block::kGroup:
      return l * per_line + p / q.group;
    case Block::kTile: {  // numbered as stored
      const int64_t across = (x.lines + q.group - 1) / q.group;
      return turned ? p / q.group * across + l / q.group : l / q.group * per_line + p / q.group;
    }
    case Block::kToken:  // rows of X and dY
      return turned ? p : l;
    case Block::kInputChannel:  // columns of W and X
      return turned ? l : p;
    case Block::kOutputChannel:  // rows of W, columns of dY
      return weight == turned ? p : l;
  }
  return 0;
}

// How one group's elements reach the grid and come back.
struct Scale {
  double enc = 1;        // multiplier, or divisor
  bool divides = false;  // y = x / enc
  double dec = 1;        // decoded = grid value * dec
  double stored = 0;     // the E4M3, UE5M3 or E8M0 value
};

inline double Exponent8(double e) { return std::clamp(e, -127.0, 127.0); }

class Quantizer {
 public:
  Quantizer(const Quant& q, Slot slot, const Draw& draw, const Lines& x)
      : q_(q), slot_(slot), draw_(draw), x_(x), grid_max_(D(ElemMax(q.elem))) {}

  void Run() {
    y_.assign(x_.v.size(), 0);
    grid_.assign(x_.v.size(), 0);
    decoded.v = x_.v;
    decoded.lines = x_.lines;
    decoded.depth = x_.depth;
    unsure.assign(x_.v.size(), false);
    mask.assign(q_.mask != Mask::kNone ? x_.v.size() : 0, false);
    enc.assign(x_.v.size(), 1);
    for (int64_t l = 0; l < x_.lines; ++l) {
      for (int64_t p = 0; p < x_.depth; ++p) {
        members_[GroupOf(q_, slot_, x_, l, p)].push_back(l * x_.depth + p);
      }
    }
    for (const auto& [group, members] : members_) {
      amax_[group] = 0;
      for (const int64_t i : members) {
        amax_[group] = std::max(amax_[group], std::fabs(Value(i)));
        const int64_t outer = OuterOf(i);
        outer_amax_[outer] = std::max(outer_amax_[outer], std::fabs(Value(i)));
      }
    }
    for (const auto& [group, members] : members_) Choose(group, members);
    if (q_.scale == ScaleRule::kEden) Correct();
  }

  Lines decoded;
  std::vector<bool> mask, unsure;
  std::vector<double> enc;

 private:
  double Value(int64_t i) const { return x_.v[static_cast<size_t>(i)]; }
  int64_t OuterOf(int64_t i) const {
    if (q_.outer == Outer::kTensor) return 0;
    return i / x_.depth * ((x_.depth + 127) / 128) + i % x_.depth / 128;
  }

  double RoundScale(const std::vector<double>& grid, double value, int64_t group) const {
    const uint32_t word = formats::RandomWord(draw_.seed, draw_.step, static_cast<uint32_t>(slot_),
                                              (uint64_t{1} << 48) + static_cast<uint64_t>(group));
    if (q_.scale_round == ScaleRound::kStochastic) return Stochastic(grid, value, word);
    if (q_.scale_round == ScaleRound::kUp) return Stochastic(grid, value, 0);
    return Nearest(grid, value);
  }

  Scale NvScale(int64_t group, double g, double mapped) const {
    const float product = q_.scale_max * F(grid_max_);
    float senc = g > 0 ? std::min(F(kFloatMax), product / F(g)) : 1.0f;
    if (senc == 0) senc = 1;
    const float sdec = 1.0f / senc;
    const float amax = F(amax_.at(group));
    float wanted = amax * (senc * (1.0f / F(grid_max_)));
    if (q_.alternatives.enabled()) {
      wanted = amax / F(grid_max_) * senc;
      if (mapped != grid_max_) wanted = F(grid_max_ / mapped) * wanted;
    }
    double s = RoundScale(ScaleGrid(true), std::min(D(wanted), kFloatMax), group);
    if (q_.outer == Outer::k128 && s == 0) s = std::ldexp(1.0, -9);
    Scale scale;
    scale.stored = s;
    scale.enc = std::min(kFloatMax, D(1.0f / (F(s) * sdec)));
    // Where g is so small that senc ends at FLT_MAX, decoding undoes that senc.
    scale.dec = g > 0 ? s * (D(senc) == kFloatMax ? 1 / D(senc) : g / D(product)) : s;
    return scale;
  }
  // Quartet II's simulation.
  Scale SimulatedScale(int64_t group, double g, double mapped) const {
    float sdec = F(g) / q_.scale_max / F(grid_max_);
    if (!(sdec > 0)) sdec = 1;
    float wanted = F(amax_.at(group)) / F(grid_max_);
    if (mapped != grid_max_) wanted = wanted * F(grid_max_ / mapped);
    const double s = Nearest(ScaleGrid(true), D(wanted / sdec));
    Scale scale;
    scale.stored = s;
    scale.divides = true;
    scale.dec = D(F(s) * sdec);
    scale.enc = s == 0 ? 1 : scale.dec;
    return scale;
  }
  Scale U53Scale(int64_t group, double g) const {
    const float r = g > 0 ? std::min(F(kFloatMax), q_.scale_max / F(g)) : 1.0f;
    double s = RoundScale(ScaleGrid(false), D(F(amax_.at(group)) * r), group);
    if (s == 0) s = 1;
    Scale scale;
    scale.stored = s;
    scale.enc = std::min(kFloatMax, D(F(grid_max_) * r / F(s)));
    scale.dec = g > 0 ? s * g / (grid_max_ * D(q_.scale_max)) : s / grid_max_;
    return scale;
  }
  Scale EdenScale(int64_t group, double g) const {
    const float v = F(grid_max_) / q_.scale_factor;
    Scale scale;
    if (q_.correction_group > q_.group) {
      float sdec = F(g) / q_.scale_max / v;
      if (!(sdec > 0)) sdec = 1;
      double s = Nearest(ScaleGrid(true), D(F(amax_.at(group)) / v / sdec));
      if (s == 0) s = 1;
      scale.stored = s;
      scale.divides = true;
      scale.enc = D(F(s) * sdec);
      return scale;
    }
    // Four mantissa bits, cut.
    const float m = F(amax_.at(group)) / v;
    const double unit = m > 0 ? std::ldexp(1.0, std::ilogb(D(m)) - 4) : 1;
    scale.stored = std::floor(D(m) / unit) * unit;
    scale.enc = scale.stored > 0 ? D(1.0f / F(scale.stored)) : 0;
    return scale;
  }

  Scale ScaleOf(int64_t group, const std::vector<int64_t>& members, double mapped) const {
    const double amax = amax_.at(group);
    const double g = outer_amax_.at(OuterOf(members[0]));
    Scale scale;
    double e = 0;
    switch (q_.scale) {
      case ScaleRule::kE8Floor:
        e = amax > 0 ? Exponent8(std::ilogb(amax) - std::ilogb(grid_max_)) : -127;
        break;
      case ScaleRule::kE8Up: {
        const double v = D(F(amax) * (1.0f / q_.scale_max));
        e = v > 0 ? std::ilogb(v) : -127;
        if (v > std::ldexp(1.0, static_cast<int>(e))) ++e;
        e = Exponent8(e);
        break;
      }
      case ScaleRule::kQuartet: {
        double mean = 0, squares = 0;
        for (const int64_t i : members) mean += Value(i) / static_cast<double>(members.size());
        for (const int64_t i : members) squares += (Value(i) - mean) * (Value(i) - mean);
        const double deviation = std::sqrt(squares / static_cast<double>(members.size()));
        e = Exponent8(std::floor(std::log2(2.92247856 / 6 * deviation + 1e-8)));
        break;
      }
      case ScaleRule::kA34:
        e = amax > 0 ? Exponent8(std::ilogb(amax)) : -127;
        scale.stored = std::ldexp(1.0, static_cast<int>(e));
        scale.enc = std::min(kFloatMax, 3 / scale.stored);
        scale.dec = scale.stored / 3;
        return scale;
      case ScaleRule::kQuest: {
        double squares = 0;
        for (const int64_t i : members) squares += Value(i) * Value(i);
        const double rms = std::sqrt(squares / static_cast<double>(members.size()));
        scale.enc = scale.dec = D(F(D(F(D(q_.scale_factor) * rms + 1e-8)) / 7.5));
        scale.divides = true;
        scale.stored = rms;
        return scale;
      }
      case ScaleRule::kNv:
        return q_.round == Round::kAway ? SimulatedScale(group, g, mapped)
                                        : NvScale(group, g, mapped);
      case ScaleRule::kU53:
        return U53Scale(group, g);
      case ScaleRule::kEden:
        return EdenScale(group, g);
      default:
        scale.enc = PlainEnc(q_, amax);
        scale.dec = q_.scale == ScaleRule::kF32 ? 1 / scale.enc : D(1.0f / F(scale.enc));
        return scale;
    }
    scale.stored = scale.dec = std::ldexp(1.0, static_cast<int>(e));
    scale.enc = 1 / scale.dec;
    return scale;
  }

  double Scaled(const Scale& scale, int64_t i) const {
    return scale.divides ? D(F(Value(i)) / F(scale.enc)) : D(F(Value(i)) * F(scale.enc));
  }
  uint32_t WordOf(int64_t i) const {
    const auto element = static_cast<uint64_t>(i);
    const auto stream = static_cast<uint32_t>(slot_);
    if (q_.round != Round::kTe8) {
      return formats::RandomWord(draw_.seed, draw_.step, stream, element);
    }
    const uint32_t word = formats::RandomWord(draw_.seed, draw_.step, stream, element / 4);
    return word >> (8 * (element % 4)) & 255;
  }
  double Rounded(double y, Round round, uint32_t word) const {
    if (q_.elem == Elem::kInt4C) {
      return round == Round::kSr24 ? CentredStochastic(y, word) : Centred(y);
    }
    if (round == Round::kSr24) return Stochastic(GridOf(q_.elem), y, word);
    if (round == Round::kTe8) return Te8(std::clamp(y, -6.0, 6.0), word);
    return Nearest(GridOf(q_.elem), y, round);
  }

  float ErrorOf(const Scale& scale, const std::vector<int64_t>& members) const {
    const float product = q_.scale_max * F(grid_max_);
    const double g = outer_amax_.at(OuterOf(members[0]));
    float error = 0;
    for (const int64_t i : members) {
      const float code = F(Nearest(GridOf(q_.elem), Scaled(scale, i), q_.round));
      const float value =
          scale.divides ? code * F(scale.dec) : code * F(scale.stored) * F(g) / product;
      const float difference = std::fabs(value - F(Value(i)));
      if (q_.alternatives.metric == ErrorMetric::kMse) error += difference * difference;
      if (q_.alternatives.metric == ErrorMetric::kMae) error += difference;
      if (q_.alternatives.metric == ErrorMetric::kMax) error = std::max(error, difference);
    }
    return error;
  }

  void Choose(int64_t group, const std::vector<int64_t>& members) {
    Scale scale = ScaleOf(group, members, grid_max_);
    if (q_.alternatives.enabled()) {
      scale = ScaleOf(group, members, D(q_.alternatives.maxima[0]));
      const Scale other = ScaleOf(group, members, D(q_.alternatives.maxima[1]));
      if (ErrorOf(other, members) < ErrorOf(scale, members)) scale = other;
    }
    scales_[group] = scale;
    for (const int64_t i : members) {
      const auto at = static_cast<size_t>(i);
      const uint32_t word = WordOf(i);
      y_[at] = Scaled(scale, i);
      grid_[at] = Rounded(y_[at], q_.round, word);
      decoded.v[at] = grid_[at] * scale.dec;
      enc[at] = scale.enc;
      if (q_.elem == Elem::kInt4C) {
        const double half = std::fabs(y_[at]) - std::floor(std::fabs(y_[at]));
        unsure[at] = half < 1e-5 || half > 1 - 1e-5;
      } else {
        unsure[at] = OnThreshold(GridOf(q_.elem), y_[at], q_.round, word);
      }
      if (q_.mask == Mask::kBelow6) mask[at] = std::fabs(y_[at]) < 6;
      if (q_.mask == Mask::kTrust) {
        mask[at] = std::fabs(decoded.v[at] - Value(i)) <=
                   D(q_.scale_factor) / 15 * scale.stored * (1 + 0x1p-20);
      }
    }
  }

  void Correct() {
    const int64_t per_line = (x_.depth + q_.group - 1) / q_.group;
    const int64_t together = q_.correction_group / q_.group;
    const bool simulation = together > 1;
    std::map<int64_t, float> wanted;
    float largest = 0;
    for (auto& [group, members] : members_) {
      const int64_t line = group / per_line, first = group % per_line / together * together;
      double num = 0, den = 0;
      for (int64_t g = first; g < std::min(per_line, first + together); ++g) {
        for (const int64_t i : members_.at(line * per_line + g)) {
          const auto at = static_cast<size_t>(i);
          num += y_[at] * y_[at];
          den += y_[at] * grid_[at];
        }
      }
      const float c = den != 0 ? F(num / den) : 1.0f;
      const float t = F(scales_[group].stored) * c;
      wanted[group] = simulation ? t : F(Bf16(D(t)));
      largest = std::max(largest, wanted[group]);
    }
    const float v = F(grid_max_) / q_.scale_factor;
    float global = largest > 0 ? largest / q_.scale_max : 1.0f;
    if (simulation) {
      global = F(outer_amax_[0]) / q_.scale_max / v;
      if (!(global > 0)) global = 1;
    }
    for (auto& [group, members] : members_) {
      const uint32_t word =
          formats::RandomWord(draw_.seed, draw_.step, static_cast<uint32_t>(slot_),
                              (uint64_t{1} << 48) + static_cast<uint64_t>(group));
      double s;
      if (simulation) {
        s = Stochastic(ScaleGrid(true), D(wanted[group]), word);
      } else {
        const float t = wanted[group] * (1.0f / global);
        uint32_t bits;
        std::memcpy(&bits, &t, sizeof bits);
        const Place p = PlaceOf(ScaleGrid(true), D(t));
        const bool up = (bits & 0xFFFFF) > (word >> 16 << 4);
        s = t < 0.015625f || t > 448 ? Nearest(ScaleGrid(true), D(t))
                                     : ScaleGrid(true)[p.below + (up ? 1 : 0)];
      }
      for (const int64_t i : members) {
        const auto at = static_cast<size_t>(i);
        decoded.v[at] = grid_[at] * s * D(global);
      }
    }
  }

  const Quant& q_;
  Slot slot_;
  Draw draw_;
  const Lines& x_;
  double grid_max_;
  std::map<int64_t, std::vector<int64_t>> members_;
  std::map<int64_t, double> amax_, outer_amax_;
  std::map<int64_t, Scale> scales_;
  std::vector<double> y_, grid_;
};

}  // namespace nibble::oracle
