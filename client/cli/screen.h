// SPDX-License-Identifier: Apache-2.0
//
// LiveRegion: lines at the bottom of a terminal that are drawn again in place. One thread.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "client/cli/context.h"

namespace nibble::cli {

class LiveRegion {
 public:
  LiveRegion(std::ostream& out, const Terminal& terminal) : out_(out), terminal_(terminal) {}
  // Replaces what the last Draw wrote. Lines are cut to the terminal's width. Without a terminal
  // the lines are appended.
  void Draw(const std::vector<std::string>& lines);
  // Leaves the lines standing; the next Draw starts below them.
  void Keep() { drawn_ = 0; }

 private:
  std::ostream& out_;
  const Terminal terminal_;
  size_t drawn_ = 0;
};

enum class Color { kNone, kRed, kGreen, kYellow, kCyan, kDim, kBold };
// The text in that colour when the terminal takes colours.
std::string Paint(const Terminal& terminal, Color color, const std::string& text);

}  // namespace nibble::cli
