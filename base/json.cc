// SPDX-License-Identifier: Apache-2.0
#include "base/json.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <unordered_set>

namespace nibble {
namespace {

// Length of the valid UTF-8 sequence at text[0], or 0. RFC 3629: no overlong forms, no surrogates.
size_t Utf8SequenceLength(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto tail = [&](size_t i) { return i < text.size() && (byte(i) & 0xC0) == 0x80; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return tail(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    if (!tail(1) || !tail(2)) return 0;
    if (lead == 0xE0 && byte(1) < 0xA0) return 0;
    if (lead == 0xED && byte(1) > 0x9F) return 0;
    return 3;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3)) return 0;
    if (lead == 0xF0 && byte(1) < 0x90) return 0;
    if (lead == 0xF4 && byte(1) > 0x8F) return 0;
    return 4;
  }
  return 0;
}

void AppendUtf8(uint32_t code_point, std::string& out) {
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    out += static_cast<char>(0xC0 | (code_point >> 6));
    out += static_cast<char>(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    out += static_cast<char>(0xE0 | (code_point >> 12));
    out += static_cast<char>(0x80 | ((code_point >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code_point & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code_point >> 18));
    out += static_cast<char>(0x80 | ((code_point >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code_point >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code_point & 0x3F));
  }
}

// Recursive descent over one text; depth bounded by kJsonMaxDepth.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<Json> ParseDocument() {
    ASSIGN_OR_RETURN(Json value, ParseValue(0));
    SkipSpace();
    if (pos_ != text_.size()) return Error("unexpected text after the value");
    return value;
  }

 private:
  Status Error(const std::string& what) const {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < pos_ && i < text_.size(); ++i) {
      column = text_[i] == '\n' ? 1 : column + 1;
      line += text_[i] == '\n';
    }
    return InvalidArgumentError("JSON line " + std::to_string(line) + ", column " +
                                std::to_string(column) + ": " + what);
  }

  void SkipSpace() {
    while (pos_ < text_.size() && (text_[pos_] == ' ' || text_[pos_] == '\t' ||
                                   text_[pos_] == '\n' || text_[pos_] == '\r')) {
      ++pos_;
    }
  }

  bool Consume(char c) {
    SkipSpace();
    if (pos_ >= text_.size() || text_[pos_] != c) return false;
    ++pos_;
    return true;
  }

  Result<Json> ParseValue(int depth) {
    if (depth > kJsonMaxDepth) {
      return Error("nested deeper than " + std::to_string(kJsonMaxDepth) + " levels");
    }
    SkipSpace();
    if (pos_ >= text_.size()) return Error("unexpected end of text");
    switch (text_[pos_]) {
      case '{':
        return ParseObject(depth);
      case '[':
        return ParseArray(depth);
      case '"': {
        ASSIGN_OR_RETURN(std::string text, ParseString());
        return Json(std::move(text));
      }
      case 't':
        return ParseWord("true", Json(true));
      case 'f':
        return ParseWord("false", Json(false));
      case 'n':
        return ParseWord("null", Json());
      default:
        return ParseNumber();
    }
  }

  Result<Json> ParseWord(std::string_view word, Json value) {
    if (text_.substr(pos_, word.size()) != word) return Error("unknown word");
    pos_ += word.size();
    return value;
  }

  Result<Json> ParseNumber() {
    const size_t start = pos_;
    const auto digits = [&] {
      const size_t from = pos_;
      while (pos_ < text_.size() && text_[pos_] >= '0' && text_[pos_] <= '9') ++pos_;
      return pos_ - from;
    };
    if (pos_ < text_.size() && text_[pos_] == '-') ++pos_;
    const size_t first_digit = pos_;
    const size_t integer_digits = digits();
    if (integer_digits == 0) return Error("expected a value");
    if (integer_digits > 1 && text_[first_digit] == '0') return Error("number with leading zero");
    bool integral = true;
    if (pos_ < text_.size() && text_[pos_] == '.') {
      integral = false;
      ++pos_;
      if (digits() == 0) return Error("number without digits after '.'");
    }
    if (pos_ < text_.size() && (text_[pos_] == 'e' || text_[pos_] == 'E')) {
      integral = false;
      ++pos_;
      if (pos_ < text_.size() && (text_[pos_] == '+' || text_[pos_] == '-')) ++pos_;
      if (digits() == 0) return Error("number without exponent digits");
    }
    const char* begin = text_.data() + start;
    const char* end = text_.data() + pos_;
    if (integral) {
      int64_t value = 0;
      if (std::from_chars(begin, end, value).ec == std::errc()) return Json(value);
    }
    double value = 0;
    const auto parsed = std::from_chars(begin, end, value);
    if (parsed.ec != std::errc() && parsed.ec != std::errc::result_out_of_range) {
      return Error("malformed number");
    }
    if (parsed.ec == std::errc::result_out_of_range) return Error("number out of double's range");
    return Json(value);
  }

  Result<uint32_t> ParseHex4() {
    if (pos_ + 4 > text_.size()) return Error("short \\u escape");
    uint32_t value = 0;
    const char* begin = text_.data() + pos_;
    const auto parsed = std::from_chars(begin, begin + 4, value, 16);
    if (parsed.ec != std::errc() || parsed.ptr != begin + 4) return Error("malformed \\u escape");
    pos_ += 4;
    return value;
  }

  Status ParseEscape(std::string& out) {
    if (pos_ >= text_.size()) return Error("unexpected end of text in a string");
    const char escape = text_[pos_++];
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    if (const size_t index = kFrom.find(escape); index != std::string_view::npos) {
      out += kTo[index];
      return OkStatus();
    }
    if (escape != 'u') return Error("unknown escape");
    ASSIGN_OR_RETURN(uint32_t code_point, ParseHex4());
    if (code_point >= 0xD800 && code_point <= 0xDBFF) {
      if (text_.substr(pos_, 2) != "\\u") return Error("lone surrogate");
      pos_ += 2;
      ASSIGN_OR_RETURN(const uint32_t low, ParseHex4());
      if (low < 0xDC00 || low > 0xDFFF) return Error("lone surrogate");
      code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
    } else if (code_point >= 0xDC00 && code_point <= 0xDFFF) {
      return Error("lone surrogate");
    }
    AppendUtf8(code_point, out);
    return OkStatus();
  }

  Result<std::string> ParseString() {
    ++pos_;  // the opening quote
    std::string out;
    while (true) {
      if (pos_ >= text_.size()) return Error("unexpected end of text in a string");
      const unsigned char c = static_cast<unsigned char>(text_[pos_]);
      if (c == '"') {
        ++pos_;
        return out;
      }
      if (c == '\\') {
        ++pos_;
        RETURN_IF_ERROR(ParseEscape(out));
        continue;
      }
      if (c < 0x20) return Error("control character in a string");
      const size_t length = Utf8SequenceLength(text_.substr(pos_, 4));
      if (length == 0) return Error("invalid UTF-8");
      out.append(text_.substr(pos_, length));
      pos_ += length;
    }
  }

  Result<Json> ParseArray(int depth) {
    ++pos_;
    Json array = Json::Array();
    if (Consume(']')) return array;
    while (true) {
      ASSIGN_OR_RETURN(Json item, ParseValue(depth + 1));
      array.Append(std::move(item));
      if (Consume(']')) return array;
      if (!Consume(',')) return Error("expected ',' or ']'");
    }
  }

  Result<Json> ParseObject(int depth) {
    ++pos_;
    if (Consume('}')) return Json::Object();
    std::vector<Json::Member> members;
    std::unordered_set<std::string> keys;
    while (true) {
      SkipSpace();
      if (pos_ >= text_.size() || text_[pos_] != '"') return Error("expected a key in quotes");
      ASSIGN_OR_RETURN(std::string key, ParseString());
      if (!keys.insert(key).second) return Error("duplicate key '" + key + "'");
      if (!Consume(':')) return Error("expected ':' after key '" + key + "'");
      ASSIGN_OR_RETURN(Json value, ParseValue(depth + 1));
      members.emplace_back(std::move(key), std::move(value));
      if (Consume('}')) return Json::ObjectOf(std::move(members));
      if (!Consume(',')) return Error("expected ',' or '}'");
    }
  }

  std::string_view text_;
  size_t pos_ = 0;
};

void AppendDouble(double value, std::string& out) {
  if (std::isnan(value)) {
    out += "\"NaN\"";
  } else if (std::isinf(value)) {
    out += value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  } else {
    char buffer[32];
    const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
    const std::string_view digits(buffer, end - buffer);
    out += digits;
    // Keeps a double a double when it is read back.
    if (digits.find_first_of(".en") == std::string_view::npos) out += ".0";
  }
}

}  // namespace

Json::Json(unsigned long value) {
  if (value <= static_cast<unsigned long>(std::numeric_limits<int64_t>::max())) {
    type_ = Type::kInt;
    int_ = static_cast<int64_t>(value);
  } else {
    type_ = Type::kDouble;
    double_ = static_cast<double>(value);
  }
}

Json Json::Array(std::initializer_list<Json> items) {
  Json json = Array();
  json.items_.assign(items.begin(), items.end());
  return json;
}

Json Json::Object(std::initializer_list<Member> members) {
  Json json = Object();
  json.members_.assign(members.begin(), members.end());
  return json;
}

Result<Json> Json::Parse(std::string_view text) { return Parser(text).ParseDocument(); }

int64_t Json::AsInt(int64_t fallback) const {
  if (type_ == Type::kInt) return int_;
  if (type_ == Type::kDouble && std::abs(double_) < 9.2e18) return static_cast<int64_t>(double_);
  return fallback;
}

double Json::AsDouble(double fallback) const {
  if (type_ == Type::kInt) return static_cast<double>(int_);
  if (type_ == Type::kDouble) return double_;
  if (type_ == Type::kString) {  // the inverse of what AppendDouble writes
    if (string_ == "NaN") return std::numeric_limits<double>::quiet_NaN();
    if (string_ == "Infinity") return std::numeric_limits<double>::infinity();
    if (string_ == "-Infinity") return -std::numeric_limits<double>::infinity();
  }
  return fallback;
}

Json& Json::Append(Json value) {
  if (is_null()) type_ = Type::kArray;
  NIBBLE_CHECK(is_array());
  items_.push_back(std::move(value));
  return *this;
}

const Json* Json::Find(std::string_view key) const {
  for (const Member& member : members_) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

const Json& Json::operator[](std::string_view key) const {
  static const Json kNull;
  const Json* found = Find(key);
  return found != nullptr ? *found : kNull;
}

Json Json::ObjectOf(std::vector<Member> members) {
  Json object = Object();
  object.members_ = std::move(members);
  return object;
}

Json& Json::Set(std::string_view key, Json value) {
  if (is_null()) type_ = Type::kObject;
  NIBBLE_CHECK(is_object());
  for (Member& member : members_) {
    if (member.first == key) {
      member.second = std::move(value);
      return *this;
    }
  }
  members_.emplace_back(std::string(key), std::move(value));
  return *this;
}

std::string Json::Dump(int indent) const {
  std::string out;
  DumpTo(out, indent, 0);
  return out;
}

void Json::DumpTo(std::string& out, int indent, int depth) const {
  const auto new_line = [&](int level) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent) * level, ' ');
  };
  switch (type_) {
    case Type::kNull:
      out += "null";
      return;
    case Type::kBool:
      out += int_ != 0 ? "true" : "false";
      return;
    case Type::kInt:
      out += std::to_string(int_);
      return;
    case Type::kDouble:
      AppendDouble(double_, out);
      return;
    case Type::kString:
      out += JsonQuote(string_);
      return;
    case Type::kArray:
      out += '[';
      for (size_t i = 0; i < items_.size(); ++i) {
        if (i > 0) out += ',';
        new_line(depth + 1);
        items_[i].DumpTo(out, indent, depth + 1);
      }
      if (!items_.empty()) new_line(depth);
      out += ']';
      return;
    case Type::kObject:
      out += '{';
      for (size_t i = 0; i < members_.size(); ++i) {
        if (i > 0) out += ',';
        new_line(depth + 1);
        out += JsonQuote(members_[i].first);
        out += indent < 0 ? ":" : ": ";
        members_[i].second.DumpTo(out, indent, depth + 1);
      }
      if (!members_.empty()) new_line(depth);
      out += '}';
      return;
  }
}

std::string JsonQuote(std::string_view text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
      ++i;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      static constexpr std::string_view kFrom = "\b\f\n\r\t", kTo = "bfnrt";
      if (const size_t index = kFrom.find(c); index != std::string_view::npos) {
        out += '\\';
        out += kTo[index];
      } else {
        char buffer[8];
        std::snprintf(buffer, sizeof(buffer), "\\u%04x", static_cast<unsigned char>(c));
        out += buffer;
      }
      ++i;
    } else if (const size_t length = Utf8SequenceLength(text.substr(i, 4)); length > 0) {
      out.append(text.substr(i, length));
      i += length;
    } else {
      out += "\xEF\xBF\xBD";  // U+FFFD
      ++i;
    }
  }
  out += '"';
  return out;
}

}  // namespace nibble
