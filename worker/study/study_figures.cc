// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_figures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/strings.h"
#include "worker/study/svg.h"

namespace nibble {
namespace {

constexpr double kWidth = 760;
constexpr double kCurvesHeight = 640;
constexpr double kPanelGap = 56;  // between the two panels
constexpr double kMarginTop = 40;
constexpr double kMarginBottom = 44;
constexpr double kRowHeight = 22;
constexpr double kBarHeight = 12;
constexpr size_t kReasonBytes = 70;  // of a reason in a figure

// Maps data to pixels along one axis.
struct Scale {
  double low, high, from, to;
  double operator()(double value) const {
    return from + (value - low) / (high - low) * (to - from);
  }
};

std::string Tick(double value) {
  if (value == 0) return "0";
  return std::abs(value) >= 1000 ? FormatCount(value) : StrFormat("%.6g", value);
}

// Baseline first, then by final loss; arms without a curve are left out.
std::vector<const ArmSummary*> ArmsToDraw(const StudySummary& summary) {
  std::vector<const ArmSummary*> arms;
  for (const ArmSummary& arm : summary.arms) {
    if (arm.curve.size() >= 2) arms.push_back(&arm);
  }
  const ArmSummary* baseline = &summary.arms[static_cast<size_t>(summary.baseline)];
  std::stable_sort(arms.begin(), arms.end(), [&](const ArmSummary* a, const ArmSummary* b) {
    if ((a == baseline) != (b == baseline)) return a == baseline;
    return a->loss.mean < b->loss.mean;
  });
  if (arms.size() > kMaxCurves) arms.resize(kMaxCurves);
  return arms;
}

void DrawFrame(SvgCanvas& svg, const Scale& x, const Scale& y) {
  for (const double tick : NiceTicks(y.low, y.high, 7)) {
    svg.Line({x.from, y(tick)}, {x.to, y(tick)}, "grid");
    svg.Text({x.from - 6, y(tick) + 4}, Tick(tick), "text", SvgAlign::kEnd);
  }
  for (const double tick : NiceTicks(x.low, x.high, 7)) {
    svg.Line({x(tick), y.from}, {x(tick), y.from + 4}, "axis");
    svg.Text({x(tick), y.from + 18}, Tick(tick), "text", SvgAlign::kMiddle);
  }
  svg.Polyline({{x.from, y.to}, {x.from, y.from}, {x.to, y.from}}, "axis");
}

void DrawCurve(SvgCanvas& svg, const Scale& x, const Scale& y, const std::vector<CurvePoint>& curve,
               int index) {
  std::vector<SvgPoint> line, band;
  for (const CurvePoint& point : curve) {
    line.emplace_back(x(point.tokens), y(point.mean));
    band.emplace_back(x(point.tokens), y(point.high));
  }
  for (auto point = curve.rbegin(); point != curve.rend(); ++point) {
    band.emplace_back(x(point->tokens), y(point->low));
  }
  svg.Polygon(band, SvgCanvas::Band(index));
  svg.Polyline(line, SvgCanvas::Series(index));
}

using CurveOf = std::vector<CurvePoint> ArmSummary::*;

// The range of the means and bands after a fifth of the run, a little wider.
Scale ValueScale(const std::vector<const ArmSummary*>& arms, CurveOf which, double end, double from,
                 double to) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const ArmSummary* arm : arms) {
    for (const CurvePoint& point : arm->*which) {
      if (point.tokens < 0.2 * end) continue;
      low = std::min(low, point.low);
      high = std::max(high, point.high);
    }
  }
  if (!(low <= high)) low = high = 0;
  const double pad = std::max(0.04 * (high - low), 1e-3);
  return {low - pad, high + pad, from, to};
}

void DrawPanel(SvgCanvas& svg, const std::vector<const ArmSummary*>& arms, CurveOf which,
               const Scale& x, const Scale& y, const std::string& label) {
  DrawFrame(svg, x, y);
  svg.BeginClip({x.from, y.to}, x.to - x.from, y.from - y.to);
  for (size_t i = arms.size(); i-- > 0;) {
    const std::vector<CurvePoint>& curve = arms[i]->*which;
    if (curve.size() >= 2) DrawCurve(svg, x, y, curve, static_cast<int>(i));
  }
  svg.EndClip();
  svg.Text({x.from, y.to - 8}, label, "text");
}

// Why an arm has no gap.
std::string Absence(const ArmSummary& arm) {
  std::string reason = !arm.not_run.empty() ? "not run: " + arm.not_run
                       : arm.diverged > 0   ? "diverged"
                                            : "not finished";
  if (reason.size() <= kReasonBytes) return reason;
  size_t cut = kReasonBytes;
  while (cut > 0 && (static_cast<unsigned char>(reason[cut]) & 0xC0) == 0x80) --cut;
  return reason.substr(0, cut) + "...";
}

std::vector<const ArmSummary*> GapRows(const StudySummary& summary) {
  std::vector<const ArmSummary*> rows;
  for (const ArmSummary& arm : summary.arms) {
    if (&arm != &summary.arms[static_cast<size_t>(summary.baseline)]) rows.push_back(&arm);
  }
  std::stable_sort(rows.begin(), rows.end(), [](const ArmSummary* a, const ArmSummary* b) {
    if ((a->difference.count > 0) != (b->difference.count > 0)) return a->difference.count > 0;
    return a->difference.count > 0 && a->gap_percent < b->gap_percent;
  });
  return rows;
}

// Range that shows zero, every mean, and every interval that is not wider than the means' spread
// by far (two seeds give t = 12.7).
Scale GapScale(const std::vector<const ArmSummary*>& rows, double from, double to) {
  double low = 0, high = 0;
  for (const ArmSummary* arm : rows) {
    if (arm->difference.count == 0) continue;
    low = std::min(low, arm->gap_percent);
    high = std::max(high, arm->gap_percent);
  }
  const double spread = std::max(high - low, 0.5);
  double shown_low = low, shown_high = high;
  for (const ArmSummary* arm : rows) {
    if (!arm->difference.bounded()) continue;
    shown_low = std::min(shown_low, std::max(arm->gap_percent - arm->gap_half_width, low - spread));
    shown_high =
        std::max(shown_high, std::min(arm->gap_percent + arm->gap_half_width, high + spread));
  }
  const double pad = 0.05 * (shown_high - shown_low) + 0.01;
  return {shown_low - pad, shown_high + pad, from, to};
}

}  // namespace

std::string CurvesFigure(const std::string& title, const StudySummary& summary) {
  const std::vector<const ArmSummary*> arms = ArmsToDraw(summary);
  SvgCanvas svg(kWidth, kCurvesHeight, title);
  svg.Text({16, 22}, title, "title");
  if (arms.empty()) {
    svg.Text({16, 60}, "no run has finished", "text");
    return svg.Finish();
  }
  double end = 0;
  for (const ArmSummary* arm : arms) end = std::max(end, arm->curve.back().tokens);
  const double top = kMarginTop + 20;
  const double panel = (kCurvesHeight - top - kPanelGap - kMarginBottom) / 2;
  const Scale x{0, end, 64, kWidth - 230};
  DrawPanel(svg, arms, &ArmSummary::curve, x,
            ValueScale(arms, &ArmSummary::curve, end, top + panel, top),
            "validation loss: mean of the seeds, smallest to largest");
  const double second = top + panel + kPanelGap;
  DrawPanel(svg, arms, &ArmSummary::gap_curve, x,
            ValueScale(arms, &ArmSummary::gap_curve, end, second + panel, second),
            "gap to the baseline in %, seed by seed");
  for (size_t i = 0; i < arms.size(); ++i) {
    const double row = top + 12 + 20 * static_cast<double>(i);
    svg.Line({x.to + 12, row}, {x.to + 36, row}, SvgCanvas::Series(static_cast<int>(i)));
    svg.Text({x.to + 42, row + 4}, arms[i]->label, "text");
  }
  svg.Text({(x.from + x.to) / 2, kCurvesHeight - 8}, "tokens", "text", SvgAlign::kMiddle);
  return svg.Finish();
}

std::string GapFigure(const std::string& title, const StudySummary& summary) {
  const std::vector<const ArmSummary*> rows = GapRows(summary);
  const double height = kMarginTop + kMarginBottom + kRowHeight * static_cast<double>(rows.size());
  SvgCanvas svg(kWidth, height, title);
  svg.Text({16, 22}, title, "title");
  const Scale x = GapScale(rows, 220, kWidth - 40);
  const double bottom = height - kMarginBottom;
  for (const double tick : NiceTicks(x.low, x.high, 8)) {
    svg.Line({x(tick), kMarginTop}, {x(tick), bottom}, "grid");
    svg.Text({x(tick), bottom + 16}, tick == 0 ? "0" : StrFormat("%+.6g %%", tick), "text",
             SvgAlign::kMiddle);
  }
  svg.BeginClip({x.from - 210, kMarginTop}, x.to - x.from + 210, bottom - kMarginTop);
  for (size_t i = 0; i < rows.size(); ++i) {
    const ArmSummary& arm = *rows[i];
    const double middle = kMarginTop + kRowHeight * (static_cast<double>(i) + 0.5);
    svg.Text({x.from - 8, middle + 4}, arm.label, "text", SvgAlign::kEnd);
    if (arm.difference.count == 0) {
      svg.Text({x.from + 4, middle + 4}, Absence(arm), "text");
      continue;
    }
    const double left = x(std::min(0.0, arm.gap_percent));
    const double right = x(std::max(0.0, arm.gap_percent));
    svg.Rect({left, middle - kBarHeight / 2}, right - left, kBarHeight,
             arm.gap_percent <= 0 ? "r3" : "r2");
    if (!arm.difference.bounded()) continue;
    const double from = x(std::max(arm.gap_percent - arm.gap_half_width, x.low));
    const double to = x(std::min(arm.gap_percent + arm.gap_half_width, x.high));
    svg.Line({from, middle}, {to, middle}, "zero");
    svg.Line({from, middle - 4}, {from, middle + 4}, "zero");
    svg.Line({to, middle - 4}, {to, middle + 4}, "zero");
  }
  svg.EndClip();
  svg.Line({x(0), kMarginTop}, {x(0), bottom}, "zero");
  svg.Text({(x.from + x.to) / 2, height - 8}, "final validation loss against the baseline", "text",
           SvgAlign::kMiddle);
  return svg.Finish();
}

}  // namespace nibble
