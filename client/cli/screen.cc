// SPDX-License-Identifier: Apache-2.0
#include "client/cli/screen.h"

#include "client/cli/table.h"

namespace nibble::cli {

void LiveRegion::Draw(const std::vector<std::string>& lines) {
  std::string text;
  if (drawn_ > 0 && terminal_.out_is_tty) {
    text += "\x1b[" + std::to_string(drawn_) + "A\r\x1b[J";  // up, then clear to the end
  }
  for (const std::string& line : lines) {
    // Escape sequences take no columns: a painted line is trusted to fit.
    const bool painted = line.find('\x1b') != std::string::npos;
    const auto width = static_cast<size_t>(terminal_.width);
    text += (terminal_.out_is_tty && !painted ? CutToWidth(line, width) : line) + "\n";
  }
  drawn_ = lines.size();
  out_ << text;
  out_.flush();
}

std::string Paint(const Terminal& terminal, Color color, const std::string& text) {
  if (!terminal.color || color == Color::kNone) return text;
  const char* code = "0";
  switch (color) {
    case Color::kRed:
      code = "31";
      break;
    case Color::kGreen:
      code = "32";
      break;
    case Color::kYellow:
      code = "33";
      break;
    case Color::kCyan:
      code = "36";
      break;
    case Color::kDim:
      code = "2";
      break;
    case Color::kBold:
      code = "1";
      break;
    case Color::kNone:
      break;
  }
  return std::string("\x1b[") + code + "m" + text + "\x1b[0m";
}

}  // namespace nibble::cli
