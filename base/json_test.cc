// SPDX-License-Identifier: Apache-2.0
#include "base/json.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

TEST(Json, RoundTripKeepsOrderTypesAndExactIntegers) {
  const std::string text =
      R"({"z":9007199254740993,"a":[1.0,-0.25,1e-300,true,false,null,"x\n\"\u00e9"],"o":{}})";
  const auto json = Json::Parse(text);
  ASSERT_TRUE(json.ok()) << json.status().ToString();
  EXPECT_EQ((*json)["z"].AsInt(), 9007199254740993);
  EXPECT_FALSE((*json)["a"].At(0).is_int());
  EXPECT_EQ((*json)["a"].At(6).AsString(), "x\n\"\xC3\xA9");
  const auto again = Json::Parse(json->Dump());
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->Dump(2), json->Dump(2));
  EXPECT_LT(json->Dump().find("\"z\""), json->Dump().find("\"a\""));
}

TEST(Json, DoublesReadBackEqual) {
  for (const double value : {0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789.0}) {
    const auto json = Json::Parse(Json(value).Dump());
    ASSERT_TRUE(json.ok());
    EXPECT_EQ(json->AsDouble(), value);
  }
  EXPECT_TRUE(std::isnan(Json::Parse(Json(std::nan("")).Dump())->AsDouble()));
  EXPECT_TRUE(std::isinf(Json::Parse(Json(-INFINITY).Dump())->AsDouble()));
}

TEST(Json, MalformedTextIsRefusedWithItsPlace) {
  for (const char* text : {"", "{", "[1,]", "{\"a\":1,}", "{\"a\":1,\"a\":2}", "01", "1.", "1e",
                           "nul", "\"\\ud800\"", "\"\x80\"", "\"\t\"", "[1] 2", "1e999", "'a'"}) {
    EXPECT_FALSE(Json::Parse(text).ok()) << text;
  }
  EXPECT_NE(Json::Parse("{\n  \"a\": ?}").status().message().find("line 2, column 8"),
            std::string::npos);
  EXPECT_FALSE(Json::Parse(std::string(1000, '[')).ok());
}

TEST(Json, SurrogatePairsAndInvalidBytes) {
  EXPECT_EQ(Json::Parse(R"("\ud83d\ude00")")->AsString(), "\xF0\x9F\x98\x80");
  EXPECT_EQ(JsonQuote("a\xFFz"), "\"a\xEF\xBF\xBDz\"");
}

}  // namespace
}  // namespace nibble
