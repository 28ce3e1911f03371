// SPDX-License-Identifier: Apache-2.0
#include "worker/study/svg.h"

#include <cmath>

#include "base/strings.h"

namespace nibble {
namespace {

// Eight colours that stay apart for colour-blind readers (Okabe and Ito, "Color universal design",
// 2008), black and yellow replaced by ones that show on both grounds; darker and lighter forms.
constexpr const char* kLight[kSvgColors] = {"#333333", "#0072b2", "#d55e00", "#009e73",
                                            "#a6569f", "#9a7500", "#3596d4", "#7a4b2b"};
constexpr const char* kDark[kSvgColors] = {"#e6e6e6", "#56b4e9", "#f0864a", "#2fcf9f",
                                           "#dd8fc9", "#e6c229", "#8ab6ff", "#c9a07f"};

std::string StyleSheet() {
  std::string style =
      "text{font:12px sans-serif;fill:#222}.title{font-size:15px;font-weight:bold}"
      ".axis{stroke:#555;fill:none}.grid{stroke:#ccc;fill:none}"
      ".zero{stroke:#333;stroke-width:1.5;fill:none}";
  std::string dark = "text{fill:#ddd}.axis{stroke:#aaa}.grid{stroke:#444}.zero{stroke:#ddd}";
  for (int i = 0; i < kSvgColors; ++i) {
    style += StrFormat(".s%d{stroke:%s;fill:none;stroke-width:1.8}", i, kLight[i]);
    style += StrFormat(".b%d{fill:%s;fill-opacity:.16;stroke:none}", i, kLight[i]);
    style += StrFormat(".r%d{fill:%s;fill-opacity:.75}", i, kLight[i]);
    dark += StrFormat(".s%d{stroke:%s}.b%d{fill:%s}.r%d{fill:%s}", i, kDark[i], i, kDark[i], i,
                      kDark[i]);
  }
  style += ".d1{stroke-dasharray:6 3}.d2{stroke-dasharray:2 3}.d3{stroke-dasharray:8 3 2 3}";
  return style + "@media(prefers-color-scheme:dark){" + dark + "}";
}

const char* AnchorName(SvgAlign align) {
  return align == SvgAlign::kStart ? "start" : align == SvgAlign::kMiddle ? "middle" : "end";
}

}  // namespace

SvgCanvas::SvgCanvas(double width, double height, std::string_view title)
    : width_(width), height_(height), title_(title) {}

std::string SvgCanvas::Series(int index) {
  const int dash = index / kSvgColors % 4;
  return dash == 0 ? StrFormat("s%d", index % kSvgColors)
                   : StrFormat("s%d d%d", index % kSvgColors, dash);
}

std::string SvgCanvas::Band(int index) { return StrFormat("b%d", index % kSvgColors); }

std::string SvgCanvas::Points(const std::vector<SvgPoint>& points) const {
  std::string text;
  for (const SvgPoint& point : points) {
    text += StrFormat("%s%.1f,%.1f", text.empty() ? "" : " ", point.first, point.second);
  }
  return text;
}

void SvgCanvas::Line(SvgPoint from, SvgPoint to, std::string_view css) {
  body_ += StrFormat("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                     EscapeXml(css).c_str(), from.first, from.second, to.first, to.second);
}

void SvgCanvas::Polyline(const std::vector<SvgPoint>& points, std::string_view css) {
  body_ += "<polyline class=\"" + EscapeXml(css) + "\" points=\"" + Points(points) + "\"/>\n";
}

void SvgCanvas::Polygon(const std::vector<SvgPoint>& points, std::string_view css) {
  body_ += "<polygon class=\"" + EscapeXml(css) + "\" points=\"" + Points(points) + "\"/>\n";
}

void SvgCanvas::Rect(SvgPoint corner, double width, double height, std::string_view css) {
  body_ += StrFormat("<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n",
                     EscapeXml(css).c_str(), corner.first, corner.second, width, height);
}

void SvgCanvas::Text(SvgPoint at, std::string_view text, std::string_view css, SvgAlign align) {
  body_ += StrFormat("<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n",
                     EscapeXml(css).c_str(), at.first, at.second, AnchorName(align),
                     EscapeXml(text).c_str());
}

void SvgCanvas::BeginClip(SvgPoint corner, double width, double height) {
  ++clips_;
  body_ += StrFormat(
      "<clipPath id=\"clip%d\"><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>"
      "</clipPath>\n<g clip-path=\"url(#clip%d)\">\n",
      clips_, corner.first, corner.second, width, height, clips_);
}

void SvgCanvas::EndClip() { body_ += "</g>\n"; }

std::string SvgCanvas::Finish() const {
  return StrFormat(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
             "height=\"%.0f\" role=\"img\">\n",
             width_, height_, width_, height_) +
         "<title>" + EscapeXml(title_) + "</title>\n<style>" + StyleSheet() + "</style>\n" + body_ +
         "</svg>\n";
}

std::string EscapeXml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&apos;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::vector<double> NiceTicks(double low, double high, int most) {
  const double raw = (high - low) / most;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> ticks;
  // The tolerance keeps an end that rounding moved just outside.
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) {
    ticks.push_back(i * step);
  }
  return ticks;
}

}  // namespace nibble
