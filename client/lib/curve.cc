// SPDX-License-Identifier: Apache-2.0
#include "client/lib/curve.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>

#include "base/strings.h"

namespace nibble {
namespace {

constexpr int kDotsX = 2, kDotsY = 4;  // braille dots a character

std::string Utf8(uint32_t code_point) {  // U+0800..U+FFFF only
  return {static_cast<char>(0xE0 | (code_point >> 12)),
          static_cast<char>(0x80 | ((code_point >> 6) & 0x3F)),
          static_cast<char>(0x80 | (code_point & 0x3F))};
}

// A grid of dots, eight to a character (Unicode block U+2800), with characters laid on top.
class Canvas {
 public:
  Canvas(int width, int height)
      : width_(width), height_(height), cells_(static_cast<size_t>(width * height)) {}

  void Dot(int x, int y) {
    static constexpr uint8_t kBits[kDotsY][kDotsX] = {
        {0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    if (x < 0 || y < 0 || x >= width_ * kDotsX || y >= height_ * kDotsY) return;
    At(x, y).bits |= kBits[y % kDotsY][x % kDotsX];
  }

  void Line(int x0, int y0, int x1, int y1) {
    const int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    for (int i = 0; i <= steps; ++i) {
      const double t = static_cast<double>(i) / steps;
      Dot(static_cast<int>(std::lround(x0 + t * (x1 - x0))),
          static_cast<int>(std::lround(y0 + t * (y1 - y0))));
    }
  }

  void Mark(int x, int y, char character) {
    if (x >= 0 && y >= 0 && x < width_ * kDotsX && y < height_ * kDotsY) At(x, y).mark = character;
  }

  std::string Row(int row) const {
    std::string out;
    for (int column = 0; column < width_; ++column) {
      const Cell& cell = cells_[static_cast<size_t>(row * width_ + column)];
      if (cell.mark != 0) {
        out += cell.mark;
      } else {
        out += cell.bits == 0 ? " " : Utf8(0x2800u + cell.bits);
      }
    }
    return out;
  }

 private:
  struct Cell {
    uint8_t bits = 0;
    char mark = 0;
  };
  Cell& At(int x, int y) { return cells_[static_cast<size_t>(y / kDotsY * width_ + x / kDotsX)]; }
  const int width_, height_;
  std::vector<Cell> cells_;
};

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // Position of `value` among `count` dots, 0 at the low end.
  int Position(double value, int count) const {
    if (!(high > low)) return count / 2;
    const double t = (value - low) / (high - low);
    return std::clamp(static_cast<int>(std::lround(t * (count - 1))), 0, count - 1);
  }
};

std::vector<CurvePoint> Finite(const std::vector<CurvePoint>& points) {
  std::vector<CurvePoint> out;
  std::copy_if(points.begin(), points.end(), std::back_inserter(out),
               [](const CurvePoint& p) { return std::isfinite(p.x) && std::isfinite(p.y); });
  return out;
}

// Mean of the points that fall into each dot column; NaN where none does.
std::vector<double> ColumnMeans(const std::vector<CurvePoint>& points, const Range& x_range,
                                int columns) {
  std::vector<double> sums(static_cast<size_t>(columns)), counts(static_cast<size_t>(columns));
  for (const CurvePoint& point : points) {
    const auto column = static_cast<size_t>(x_range.Position(point.x, columns));
    sums[column] += point.y;
    counts[column] += 1;
  }
  for (size_t i = 0; i < sums.size(); ++i) sums[i] /= counts[i];  // 0/0 is NaN, as meant
  return sums;
}

std::string Axis(const Range& x_range, const CurveOptions& options, int label_width) {
  const std::string low = StrFormat("%.0f", x_range.low);
  std::string high = StrFormat("%.0f", x_range.high);
  if (!options.x_label.empty()) high = options.x_label + " " + high;
  const int gap = std::max(1, options.width - static_cast<int>(low.size() + high.size()));
  return std::string(static_cast<size_t>(label_width) + 2, ' ') + low +
         std::string(static_cast<size_t>(gap), ' ') + high;
}

}  // namespace

std::vector<std::string> DrawCurve(const std::vector<CurvePoint>& line,
                                   const std::vector<CurvePoint>& marks,
                                   const CurveOptions& given) {
  CurveOptions options = given;
  options.width = std::clamp(options.width, 4, 400);
  options.height = std::clamp(options.height, 2, 100);
  const std::vector<CurvePoint> points = Finite(line), mark_points = Finite(marks);
  Range x_range, y_range;
  for (const auto* group : {&points, &mark_points}) {
    for (const CurvePoint& point : *group) x_range.Add(point.x);
  }
  if (options.x_max > options.x_min) x_range = {options.x_min, options.x_max};
  const int dots_x = options.width * kDotsX, dots_y = options.height * kDotsY;
  std::vector<double> means;
  if (!points.empty()) means = ColumnMeans(points, x_range, dots_x);
  for (const double mean : means) {
    if (std::isfinite(mean)) y_range.Add(mean);
  }
  for (const CurvePoint& point : mark_points) y_range.Add(point.y);
  if (!(y_range.high >= y_range.low)) return {"(no points yet)"};

  Canvas canvas(options.width, options.height);
  int last_x = -1, last_y = 0;
  for (int x = 0; x < static_cast<int>(means.size()); ++x) {
    const double mean = means[static_cast<size_t>(x)];
    if (!std::isfinite(mean)) continue;
    const int y = dots_y - 1 - y_range.Position(mean, dots_y);
    canvas.Line(last_x < 0 ? x : last_x, last_x < 0 ? y : last_y, x, y);
    last_x = x;
    last_y = y;
  }
  for (const CurvePoint& point : mark_points) {
    canvas.Mark(x_range.Position(point.x, dots_x), dots_y - 1 - y_range.Position(point.y, dots_y),
                'o');
  }

  const std::string top = StrFormat("%.3f", y_range.high), bottom = StrFormat("%.3f", y_range.low);
  const int label_width = static_cast<int>(std::max(top.size(), bottom.size()));
  std::vector<std::string> out;
  for (int row = 0; row < options.height; ++row) {
    const bool first = row == 0, last = row == options.height - 1;
    const std::string label = first ? top : last ? bottom : "";
    out.push_back(StrFormat("%*s ", label_width, label.c_str()) + (first || last ? "┤" : "│") +
                  canvas.Row(row));
  }
  out.push_back(Axis(x_range, options, label_width));
  return out;
}

std::string ProgressBar(double fraction, int width) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  if (!(fraction >= 0)) fraction = 0;
  const int eighths = static_cast<int>(std::floor(std::min(fraction, 1.0) * width * 8));
  std::string out;
  for (int i = 0; i < eighths / 8; ++i) out += "█";
  int used = eighths / 8;
  if (eighths % 8 > 0) {
    out += kEighths[eighths % 8];
    ++used;
  }
  return out + std::string(static_cast<size_t>(std::max(0, width - used)), ' ');
}

std::string Sparkline(const std::vector<double>& values, int width) {
  static constexpr const char* kLevels[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::vector<double> finite;
  std::copy_if(values.begin(), values.end(), std::back_inserter(finite),
               [](double value) { return std::isfinite(value); });
  if (finite.empty() || width < 1) return "";
  const size_t buckets = std::min(finite.size(), static_cast<size_t>(width));
  std::vector<double> means;
  Range range;
  for (size_t i = 0; i < buckets; ++i) {
    const size_t from = i * finite.size() / buckets, to = (i + 1) * finite.size() / buckets;
    double sum = 0;
    for (size_t k = from; k < to; ++k) sum += finite[k];
    means.push_back(sum / static_cast<double>(to - from));
    range.Add(means.back());
  }
  std::string out;
  for (const double mean : means) out += kLevels[range.Position(mean, 8)];
  return out;
}

}  // namespace nibble
