// SPDX-License-Identifier: Apache-2.0
#include "worker/data/pod_text.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "worker/data/unicode.h"

namespace nibble {
namespace {

// Codes nested deeper than this are kept as they stand.
constexpr int kMaxNesting = 16;

// Text as UTF-8: as it is when valid, else taken as Latin-1; control characters dropped.
std::string CleanInput(std::string_view text) {
  const bool latin1 = FindInvalidUtf8(text).has_value();
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F) continue;
    if (byte < 0x80 || !latin1) {
      out += c;
    } else {
      AppendUtf8(byte, out);
    }
  }
  return out;
}

// The character of E<name>; "" when unknown.
std::string EntityText(std::string_view name) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 34> kNames = {{
      {"lt", "<"},     {"gt", ">"},       {"verbar", "|"},   {"sol", "/"},    {"amp", "&"},
      {"quot", "\""},  {"nbsp", " "},     {"copy", "©"},     {"reg", "®"},    {"laquo", "«"},
      {"raquo", "»"},  {"lchevron", "«"}, {"rchevron", "»"}, {"eacute", "é"}, {"egrave", "è"},
      {"Eacute", "É"}, {"agrave", "à"},   {"aacute", "á"},   {"aring", "å"},  {"auml", "ä"},
      {"ouml", "ö"},   {"uuml", "ü"},     {"Auml", "Ä"},     {"Ouml", "Ö"},   {"Uuml", "Ü"},
      {"szlig", "ß"},  {"ccedil", "ç"},   {"ntilde", "ñ"},   {"oslash", "ø"}, {"aelig", "æ"},
      {"iacute", "í"}, {"oacute", "ó"},   {"mdash", "—"},    {"ndash", "–"},
  }};
  for (const auto& [known, text] : kNames) {
    if (known == name) return std::string(text);
  }
  uint64_t code = 0;
  const bool hex = name.starts_with("0x") || name.starts_with("x");
  std::string_view digits = name;
  if (hex) digits.remove_prefix(name.starts_with("0x") ? 2 : 1);
  const unsigned base = hex ? 16 : name.starts_with("0") ? 8 : 10;
  if (digits.empty() || digits.size() > 8) return "";
  for (const char c : digits) {
    const unsigned digit = c >= '0' && c <= '9'   ? static_cast<unsigned>(c - '0')
                           : c >= 'a' && c <= 'f' ? static_cast<unsigned>(c - 'a') + 10
                           : c >= 'A' && c <= 'F' ? static_cast<unsigned>(c - 'A') + 10
                                                  : 99;
    if (digit >= base) return "";
    code = code * base + digit;
  }
  if (code < 0x20 || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return "";
  std::string out;
  AppendUtf8(static_cast<char32_t>(code), out);
  return out;
}

// A formatting code in text: its letter, where its content lies, and where it ends.
struct Code {
  char letter = 0;
  size_t content_begin = 0;
  size_t content_end = 0;
  size_t end = 0;
};

bool StartsCode(std::string_view text, size_t pos) {
  return pos + 1 < text.size() && text[pos] >= 'A' && text[pos] <= 'Z' && text[pos + 1] == '<';
}

// Reads the code that begins at `pos`; false when it is never closed.
bool ReadCode(std::string_view text, size_t pos, int depth, Code& code) {
  size_t brackets = 1;
  while (pos + 1 + brackets < text.size() && text[pos + 1 + brackets] == '<') ++brackets;
  const auto is_space = [&](size_t i) {
    return i < text.size() && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t');
  };
  if (brackets > 1 && !is_space(pos + 1 + brackets)) brackets = 1;
  code.letter = text[pos];
  code.content_begin = pos + 1 + brackets;
  for (size_t i = code.content_begin; i < text.size(); ++i) {
    Code inner;
    if (StartsCode(text, i) && depth < kMaxNesting && ReadCode(text, i, depth + 1, inner)) {
      i = inner.end - 1;
      continue;
    }
    if (text[i] != '>') continue;
    if (brackets > 1 &&
        (text.substr(i, brackets) != std::string(brackets, '>') || !is_space(i - 1)))
      continue;
    code.content_end = i;
    code.end = i + brackets;
    return true;
  }
  return false;
}

std::string Inline(std::string_view text, int depth);

// L<text|target>, L<page>, L<page/"section">, L</section>, L<scheme:...>.
std::string LinkText(std::string_view content, int depth) {
  size_t bar = std::string_view::npos;
  for (size_t i = 0; i < content.size() && bar == std::string_view::npos; ++i) {
    Code inner;
    if (StartsCode(content, i) && ReadCode(content, i, depth, inner)) {
      i = inner.end - 1;
    } else if (content[i] == '|') {
      bar = i;
    }
  }
  if (bar != std::string_view::npos) return Inline(content.substr(0, bar), depth);
  std::string target = Inline(content, depth);
  if (target.find("://") != std::string::npos) return target;
  const size_t slash = target.find('/');
  if (slash == std::string::npos) return target;
  std::string section = target.substr(slash + 1);
  if (section.size() >= 2 && section.front() == '"' && section.back() == '"') {
    section = section.substr(1, section.size() - 2);
  }
  return slash == 0 ? section : section + " in " + target.substr(0, slash);
}

// Text with its formatting codes resolved.
std::string Inline(std::string_view text, int depth) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    Code code;
    if (!StartsCode(text, pos) || depth >= kMaxNesting || !ReadCode(text, pos, depth, code)) {
      out += text[pos++];
      continue;
    }
    std::string_view content =
        text.substr(code.content_begin, code.content_end - code.content_begin);
    if (code.end - code.content_end > 1) content = StrTrim(content);
    if (code.letter == 'E') {
      out += EntityText(StrTrim(content));
    } else if (code.letter == 'L') {
      out += LinkText(content, depth + 1);
    } else if (code.letter != 'X' && code.letter != 'Z') {
      out += Inline(content, depth + 1);
    }
    pos = code.end;
  }
  return out;
}

bool IsCommand(std::string_view text) {
  return text.size() > 1 && text[0] == '=' && text[1] >= 'a' && text[1] <= 'z';
}

// Paragraphs: runs of lines between lines of white space only. A command also begins one where the
// blank line before it was forgotten.
std::vector<std::string_view> Paragraphs(std::string_view text) {
  std::vector<std::string_view> all;
  size_t begin = std::string_view::npos;
  size_t end = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t line_end = std::min(text.find('\n', pos), text.size());
    const std::string_view line = text.substr(pos, line_end - pos);
    if (IsCommand(line) && begin != std::string_view::npos) {
      all.push_back(text.substr(begin, end - begin));
      begin = std::string_view::npos;
    }
    if (StrTrim(line).empty()) {
      if (begin != std::string_view::npos) all.push_back(text.substr(begin, end - begin));
      begin = std::string_view::npos;
    } else {
      if (begin == std::string_view::npos) begin = pos;
      end = line_end;
    }
    pos = line_end + 1;
  }
  if (begin != std::string_view::npos) all.push_back(text.substr(begin, end - begin));
  return all;
}

bool IsBareItem(std::string_view text) {
  return text.find_first_not_of("*-.0123456789)") == std::string_view::npos;
}

class Extractor {
 public:
  std::string Run(std::string_view text) {
    for (const std::string_view paragraph : Paragraphs(text)) {
      if (IsCommand(paragraph)) {
        Command(paragraph);
      } else if (in_pod_ && !in_other_format_) {
        if (paragraph[0] == ' ' || paragraph[0] == '\t') {
          Emit(std::string(paragraph), /*verbatim=*/true);
        } else {
          Emit(Inline(paragraph, 0), /*verbatim=*/false);
        }
      }
    }
    return std::move(out_);
  }

 private:
  void Command(std::string_view paragraph) {
    const size_t name_end = std::min(paragraph.find_first_of(" \t\n"), paragraph.size());
    const std::string_view name = paragraph.substr(1, name_end - 1);
    const std::string_view rest = StrTrim(paragraph.substr(name_end));
    in_pod_ = name != "cut";
    if (name == "begin") in_other_format_ = !rest.starts_with(':');
    if (name == "end") in_other_format_ = false;
    if (in_other_format_) return;
    if (name.starts_with("head") || (name == "item" && !IsBareItem(rest))) {
      Emit(Inline(rest, 0), /*verbatim=*/false);
    }
  }

  void Emit(const std::string& text, bool verbatim) {
    std::string_view kept = text;
    while (!kept.empty() && (kept.back() == '\n' || kept.back() == ' ')) kept.remove_suffix(1);
    if (StrTrim(kept).empty()) return;
    if (!out_.empty()) out_ += '\n';
    out_ += verbatim ? kept : StrTrim(kept);
    out_ += '\n';
  }

  std::string out_;
  bool in_pod_ = false;
  bool in_other_format_ = false;
};

}  // namespace

std::string PodToText(std::string_view pod) { return Extractor().Run(CleanInput(pod)); }

}  // namespace nibble
