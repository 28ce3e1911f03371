// SPDX-License-Identifier: Apache-2.0
//
// SvgCanvas: a small writer of SVG drawings that read well on light and dark pages.
//
// Colours are classes of one style sheet that follows prefers-color-scheme; the drawing carries no
// background, no script and no reference to anything outside it.
// Thread-safety: one thread. Ownership: owns its text.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

inline constexpr int kSvgColors = 8;

using SvgPoint = std::pair<double, double>;

// Where a text's anchor point lies.
enum class SvgAlign { kStart, kMiddle, kEnd };

class SvgCanvas {
 public:
  // Sizes in pixels. `title` is what screen readers say.
  SvgCanvas(double width, double height, std::string_view title);

  // Classes: "axis", "grid", "zero", "text", "title", "bar", or Series(i), Band(i).
  void Line(SvgPoint from, SvgPoint to, std::string_view css);
  void Polyline(const std::vector<SvgPoint>& points, std::string_view css);
  void Polygon(const std::vector<SvgPoint>& points, std::string_view css);
  void Rect(SvgPoint corner, double width, double height, std::string_view css);
  void Text(SvgPoint at, std::string_view text, std::string_view css,
            SvgAlign align = SvgAlign::kStart);
  // What is drawn between the calls is cut at the rectangle.
  void BeginClip(SvgPoint corner, double width, double height);
  void EndClip();

  // The whole document.
  std::string Finish() const;

  // Line and band of the i-th series: colours repeat after kSvgColors with another dash.
  static std::string Series(int index);
  static std::string Band(int index);

 private:
  std::string Points(const std::vector<SvgPoint>& points) const;

  std::string body_;
  double width_, height_;
  std::string title_;
  int clips_ = 0;
};

// The five characters that XML reserves become entities; control characters become spaces.
std::string EscapeXml(std::string_view text);

// Round tick positions inside [low, high], at most `most` intervals between them; steps of 1, 2
// or 5 times a power of ten. Precondition: low < high, most >= 2.
std::vector<double> NiceTicks(double low, double high, int most);

}  // namespace nibble
