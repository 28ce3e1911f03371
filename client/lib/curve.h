// SPDX-License-Identifier: Apache-2.0
//
// Curves in a terminal: loss over steps drawn with Unicode braille dots, progress bars with block
// characters, one-line sparklines. Pure functions, thread-safe; no colour, no cursor movement.
#pragma once

#include <string>
#include <vector>

namespace nibble {

struct CurvePoint {
  double x = 0;
  double y = 0;
};

struct CurveOptions {
  int width = 60;   // characters of the plot area, 4..400
  int height = 10;  // lines of the plot area, 2..100
  double x_min = 0;
  double x_max = 0;     // x_max <= x_min: from the points
  std::string x_label;  // below the axis, e.g. "step"
};

// The plot as lines: y labels at the left, an axis and x labels below. `line` points that share a
// column are averaged and neighbours are joined; `marks` are drawn as single characters ('o') on
// top. Points that are not finite are left out; without any point: one line saying so.
std::vector<std::string> DrawCurve(const std::vector<CurvePoint>& line,
                                   const std::vector<CurvePoint>& marks,
                                   const CurveOptions& options);

// "█████▌    ": `fraction` (clamped to 0..1) of `width` characters in eighths.
std::string ProgressBar(double fraction, int width);

// One character a value, low to high; values are averaged into at most `width` buckets.
std::string Sparkline(const std::vector<double>& values, int width);

}  // namespace nibble
