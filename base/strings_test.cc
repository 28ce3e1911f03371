// SPDX-License-Identifier: Apache-2.0
#include "base/strings.h"

#include <gtest/gtest.h>

#include "base/ids.h"

namespace nibble {
namespace {

TEST(Strings, DurationsInEveryAcceptedForm) {
  const std::pair<const char*, double> cases[] = {
      {"90", 90},         {"90s", 90},    {"90m", 5400},  {"1h30m", 5400},
      {"2d", 172800},     {"500ms", 0.5}, {"1.5h", 5400}, {"1-02:03:04", 93784},
      {"02:03:04", 7384}, {"03:04", 184}, {"0", 0}};
  for (const auto& [text, seconds] : cases) {
    const auto parsed = ParseDurationSeconds(text);
    ASSERT_TRUE(parsed.ok()) << text;
    EXPECT_DOUBLE_EQ(*parsed, seconds) << text;
  }
  for (const char* text : {"", "h", "5x", "-3s", "1-2", "a:b", "1h30q", "nan", "inf", "1e400s"}) {
    EXPECT_FALSE(ParseDurationSeconds(text).ok()) << text;
  }
}

TEST(Strings, UnknownNameMessageSuggestsTheNearest) {
  const std::string message = UnknownNameMessage("recipe", "fp4_direkt", {"bf16", "fp4_direct"});
  EXPECT_EQ(message,
            "unknown recipe 'fp4_direkt'; known: bf16, fp4_direct; did you mean 'fp4_direct'?");
  EXPECT_EQ(NearestName("zzzzzz", {"bf16"}), "");
}

TEST(Strings, FormatsForPeople) {
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(12), "12 B");
  EXPECT_EQ(FormatCount(1300000), "1.30 M");
  EXPECT_EQ(FormatDuration(123), "2m03s");
  EXPECT_EQ(FormatDuration(0.75), "0.8s");
  EXPECT_EQ(FormatDuration(59.7), "1m00s");
  EXPECT_EQ(FormatUtc(1'700'000'000'123), "2023-11-14T22:13:20.123Z");
}

TEST(Strings, PrefixThenKeepsWholeCharacters) {
  EXPECT_EQ(Utf8Prefix("abc", 3), "abc");
  EXPECT_EQ(Utf8Prefix("abcd", 3), "abc");
  EXPECT_EQ(Utf8Prefix("ab\u00e9", 3), "ab");      // two bytes
  EXPECT_EQ(Utf8Prefix("ab\U0001F600", 5), "ab");  // four
  EXPECT_EQ(Utf8Prefix("ab\U0001F600c", 6), "ab\U0001F600");
  EXPECT_EQ(Utf8Prefix("\u00e9", 1), "");
  EXPECT_EQ(Utf8Prefix("", 0), "");
}

TEST(Strings, NumbersAreParsedWhole) {
  EXPECT_EQ(*ParseInt("-12"), -12);
  EXPECT_FALSE(ParseInt("12x").ok());
  EXPECT_FALSE(ParseInt("").ok());
  EXPECT_DOUBLE_EQ(*ParseDouble("3e-4"), 3e-4);
  EXPECT_FALSE(ParseDouble("1.0.0").ok());
}

TEST(Ids, NamesFollowTheLabelRule) {
  EXPECT_TRUE(IsValidName("llm-1b"));
  for (const char* name : {"", "-a", "a-", "A", "a_b", "a.b"}) EXPECT_FALSE(IsValidName(name));
  EXPECT_FALSE(IsValidName(std::string(64, 'a')));
  EXPECT_NE(RandomId("j"), RandomId("j"));
}

}  // namespace
}  // namespace nibble
