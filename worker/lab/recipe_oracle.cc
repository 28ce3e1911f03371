// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/recipe_oracle.h"

#include <algorithm>
#include <cmath>

#include "kernels/formats/philox.h"
#include "worker/lab/oracle_grid.h"
#include "worker/lab/oracle_quantizer.h"

namespace nibble::oracle {
namespace {

double Sign(const Rotation& rotation, const Draw& draw, Slot slot, int64_t i) {
  static constexpr int kFixed[] = {1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1};
  if (rotation.signs == Signs::kNone) return 1;
  if (rotation.signs == Signs::kFixed) return kFixed[i % 16];
  const uint32_t stream = 0x80000000u | (static_cast<uint32_t>(slot) / 2);
  const uint32_t word = formats::RandomWord(draw.seed, draw.step, stream, static_cast<uint64_t>(i));
  return word >> 31 != 0 ? -1 : 1;
}

// H[i][j] of Sylvester is the parity of common bits.
double Hadamard(int64_t i, int64_t j) {
  return __builtin_popcountll(static_cast<unsigned long long>(i & j)) % 2 == 0 ? 1 : -1;
}

void RotateLines(const Quant& q, Slot slot, const Draw& draw, bool inverse, Lines* x) {
  const int64_t n = q.rotation.size;
  std::vector<double> out(static_cast<size_t>(n));
  for (int64_t l = 0; l < x->lines; ++l) {
    for (int64_t g = 0; g < x->depth; g += n) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) {
          sum += x->at(l, g + i) * Hadamard(i, j) * (inverse ? 1 : Sign(q.rotation, draw, slot, i));
        }
        out[static_cast<size_t>(j)] =
            (inverse ? sum * Sign(q.rotation, draw, slot, j) : D(F(sum))) *
            D(F(1 / std::sqrt(static_cast<double>(n))));
      }
      for (int64_t j = 0; j < n; ++j) x->at(l, g + j) = out[static_cast<size_t>(j)];
    }
  }
}

// Bounds of clamping, by stored row.
void Bounds(const Occ& occ, std::vector<double> values, double* low, double* high) {
  std::sort(values.begin(), values.end());
  const double n = static_cast<double>(values.size());
  *low = values[static_cast<size_t>((1 - occ.alpha) * n)];
  const auto top = static_cast<size_t>(occ.alpha * n);
  *high = values[std::min(top, values.size() - 1)];
}

// The residual, which `x` loses.
Lines TakeOutliers(const Occ& occ, Slot slot, Lines* x) {
  Lines residual = *x;
  const bool turned = TurnsRows(slot);
  const int64_t rows = turned ? x->depth : x->lines, cols = turned ? x->lines : x->depth;
  const auto at = [&](int64_t r, int64_t c) {
    return static_cast<size_t>(turned ? c * x->depth + r : r * x->depth + c);
  };
  double low = 0, high = 0;
  if (occ.scope == OccScope::kTensor) Bounds(occ, x->v, &low, &high);
  for (int64_t r = 0; r < rows; ++r) {
    if (occ.scope == OccScope::kToken) {
      std::vector<double> row;
      for (int64_t c = 0; c < cols; ++c) row.push_back(x->v[at(r, c)]);
      Bounds(occ, row, &low, &high);
    }
    for (int64_t c = 0; c < cols; ++c) {
      double& value = x->v[at(r, c)];
      const double clamped = std::clamp(value, low, high);
      residual.v[at(r, c)] = D(F(value) - F(clamped));
      value = clamped;
    }
  }
  return residual;
}

// The columns of the X at hand with the largest norms, and the rest.
Lines TakeChannels(const Quant& q, Slot slot, const Draw& draw, const std::vector<int64_t>& set,
                   Lines* x) {
  const bool lines_are_columns = slot == Slot::kXw;
  const auto count = static_cast<int64_t>(set.size());
  Lines part{lines_are_columns ? count : x->lines, lines_are_columns ? x->depth : count, {}};
  part.v.resize(static_cast<size_t>(part.lines * part.depth));
  const auto each = [&](auto&& body) {
    for (int64_t l = 0; l < part.lines; ++l) {
      for (int64_t p = 0; p < part.depth; ++p) {
        const int64_t column = set[static_cast<size_t>(lines_are_columns ? l : p)];
        double& whole = lines_are_columns ? x->at(column, p) : x->at(l, column);
        body(part.at(l, p), whole);
      }
    }
  };
  each([](double& of_part, double& whole) {
    of_part = whole;
    whole = 0;
  });
  Quant format;
  format.elem = q.split_elem;
  format.block = Block::kGroup;
  format.group = 32;
  format.scale = ScaleRule::kE8Up;
  format.scale_max = ElemMax(q.split_elem);
  Quantizer quantizer(format, slot, draw, part);
  quantizer.Run();
  part = quantizer.decoded;
  Lines out = *x;
  std::fill(out.v.begin(), out.v.end(), 0.0);
  std::swap(out, *x);  // x is now zero, out the rest
  each([](double& of_part, double& whole) { whole = of_part; });
  std::swap(out, *x);
  return out;
}

std::vector<int64_t> LargestColumns(const Quant& q, const Matrix& x) {
  std::vector<std::pair<double, int64_t>> norms;
  for (int64_t c = 0; c < x.cols; ++c) {
    double squares = 0;
    for (int64_t r = 0; r < x.rows; ++r) {
      const double value = D(x.values[static_cast<size_t>(r * x.cols + c)]);
      squares += value * value;
    }
    norms.emplace_back(-squares, c);
  }
  std::stable_sort(norms.begin(), norms.end());
  const double groups = std::ceil(D(q.split_share) * static_cast<double>(x.cols) / 128);
  std::vector<int64_t> set;
  for (size_t i = 0; i < norms.size() && i < static_cast<size_t>(groups) * 128; ++i) {
    set.push_back(norms[i].second);
  }
  std::sort(set.begin(), set.end());
  return set;
}

}  // namespace

std::vector<double> Rotate(const LinearRecipe& recipe, Slot slot, const Draw& draw, bool inverse,
                           const std::vector<double>& stored, int64_t rows, int64_t cols) {
  Lines x = Turn(TurnsRows(slot), stored, rows, cols);
  RotateLines(recipe.slot(slot), slot, draw, inverse, &x);
  return TurnBack(TurnsRows(slot), x.v, x.lines, x.depth);
}

Result Quantize(const LinearRecipe& recipe, Slot slot, const Draw& draw, const Matrix& source,
                const std::vector<double>& fold) {
  const Quant& q = recipe.slot(slot);
  const bool turned = TurnsRows(slot);
  std::vector<double> stored;
  for (const float value : source.values) {
    stored.push_back(q.source == Source::kRequant ? D(value) : Bf16(D(value)));
  }
  Lines x = Turn(turned, stored, source.rows, source.cols);
  if (q.rotation.size > 0) {
    RotateLines(q, slot, draw, false, &x);
    for (double& value : x.v) {
      value = q.rotation.signs == Signs::kFixed ? Bf16(D(F(value))) : D(F(value));
    }
  }
  for (int64_t l = 0; !fold.empty() && l < x.lines; ++l) {
    for (int64_t p = 0; p < x.depth; ++p) {
      x.at(l, p) = D(F(x.at(l, p)) / F(fold[static_cast<size_t>(p)]));
    }
  }
  const Lines whole = x;
  Lines apart = x;  // what is added to the decoded values
  std::fill(apart.v.begin(), apart.v.end(), 0.0);
  if (q.split == Split::kChannels) {
    apart = TakeChannels(q, slot, draw, LargestColumns(q, source), &x);
  }
  if (q.pre.enabled) apart = TakeOutliers(q.pre, slot, &x);
  Quantizer quantizer(q, slot, draw, x);
  quantizer.Run();
  Lines decoded = quantizer.decoded;
  if (q.pre.enabled && q.pre.comp == OccComp::kE4M3) {
    double amax = 0;
    for (const double r : apart.v) amax = std::max(amax, std::fabs(r));
    const double enc = PowerOfTwo(amax, 448);
    for (double& r : apart.v) r = Nearest(GridOf(Elem::kE4M3), r * enc) / enc;
  }
  for (size_t i = 0; i < decoded.v.size(); ++i) {
    if (q.pre.enabled && q.pre.comp == OccComp::kBf16) apart.v[i] = Bf16(apart.v[i]);
    if (q.pre.enabled && IsWide(q.pre.comp)) {
      // Half units on the row's own scale, up to 127, for what lies beyond the bounds; those of
      // E4M3's grid have four significant bits and end at 112.
      if (apart.v[i] == 0) continue;
      const bool e4m3 = q.pre.comp == OccComp::kWideE4M3;
      const double most = e4m3 ? 112 : 127;
      const double halves = std::clamp(D(F(whole.v[i]) * F(quantizer.enc[i]) * 2.0f), -most, most);
      const double step = e4m3 && std::fabs(halves) >= 16 ? std::exp2(std::ilogb(halves) - 3) : 1.0;
      decoded.v[i] = std::nearbyint(halves / step) * step / 2 / quantizer.enc[i];
    } else if (!q.pre.enabled || q.pre.comp != OccComp::kNone) {
      decoded.v[i] += apart.v[i];
    }
  }
  if (q.fallback_error > 0) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < x.v.size(); ++i) {
      error += std::pow(decoded.v[i] - x.v[i], 2);
      norm += x.v[i] * x.v[i];
    }
    if (std::sqrt(error / norm) > q.fallback_error) decoded = x;
  }
  if (q.recast_e4m3) {
    double amax = 0;
    for (const double v : decoded.v) amax = std::max(amax, std::fabs(D(F(v))));
    const double enc = PowerOfTwo(amax, 448);
    for (double& v : decoded.v) v = Nearest(GridOf(Elem::kE4M3), D(F(v)) * enc) / enc;
  }
  for (int64_t l = 0; !fold.empty() && l < x.lines; ++l) {
    for (int64_t p = 0; p < x.depth; ++p) {
      if (decoded.at(l, p) != 0) decoded.at(l, p) *= fold[static_cast<size_t>(p)];
    }
  }
  Result result;
  result.decoded = MakeMatrix("decoded", source.rows, source.cols);
  const std::vector<double> back = TurnBack(turned, decoded.v, x.lines, x.depth);
  for (size_t i = 0; i < back.size(); ++i) result.decoded.values[i] = F(back[i]);
  if (!quantizer.mask.empty()) result.mask = TurnBack(turned, quantizer.mask, x.lines, x.depth);
  result.enc = TurnBack(turned, quantizer.enc, x.lines, x.depth);
  result.unsure = TurnBack(turned, quantizer.unsure, x.lines, x.depth);
  return result;
}

double Derivative(const WeightEstimator& e, double x) {
  static const double edges[] = {-6, -4, -3, -2, -1.5, -1, -.5, 0, .5, 1, 1.5, 2, 3, 4, 6};
  if (e.kind == Estimator::kSte) return 1;
  const bool outside = std::fabs(x) > 6;
  const auto clip = [](double v) { return std::clamp(v, 0.5, 1e4); };
  int cell = 0;
  while (cell < 13 && x >= edges[cell + 1]) ++cell;
  const double d = edges[cell + 1] - edges[cell], middle = edges[cell] + d / 2;
  if (e.kind == Estimator::kDge) {
    if (outside && !(e.extrapolate && x < -6)) return 0;
    const double u = std::fabs(2 * (x - edges[cell]) / d - 1);
    const double value = std::min(e.clip, std::pow(u, 1 / e.k - 1) / e.k);
    return e.extrapolate ? Bf16(value) : value;
  }
  if (e.kind == Estimator::kPower) {
    return outside ? 0.5 : clip(d / 2 / e.k * std::pow(std::fabs(x - middle), 1 / e.k - 1));
  }
  if (e.kind == Estimator::kSpline) {
    if (outside) return 0.5;
    const double cellular = std::min(38.0, std::floor((x + 6) * 3.25));
    const double left = Nearest(GridOf(Elem::kE2M1), D(F(-6 + cellular * 12 / 39)));
    const double right = Nearest(GridOf(Elem::kE2M1), D(F(-6 + (cellular + 1) * 12 / 39)));
    return clip((right - left) * 39 / 12);
  }
  double sum = 0;
  for (int step = 0; step < 14; ++step) {
    const double width = edges[step + 1] - edges[step];
    const double s = 1 / (1 + std::exp(-(x - (edges[step] + width / 2)) / e.temperature));
    sum += width * s * (1 - s) / e.temperature;
  }
  return clip(sum);
}

}  // namespace nibble::oracle
