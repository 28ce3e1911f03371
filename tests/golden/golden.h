// SPDX-License-Identifier: Apache-2.0
//
// Golden values: known inputs and expected results of formats, scales, estimators and layers, kept
// as JSON beside this file. Thread-safety: pure functions, for tests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/files.h"
#include "base/json.h"

namespace nibble::golden {

// Case `id` of tests/golden/<file>.json. Fails the test when it is absent.
inline Json Case(const std::string& file, const std::string& id) {
  const std::string path = std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/" + file + ".json";
  const Result<std::string> text = ReadFile(path);
  EXPECT_TRUE(text.ok()) << text.status().ToString();
  if (!text.ok()) return Json();
  const Result<Json> json = Json::Parse(*text);
  EXPECT_TRUE(json.ok()) << json.status().ToString();
  if (!json.ok()) return Json();
  EXPECT_TRUE((*json)[id].is_object()) << "no case " << id << " in " << path;
  return (*json)[id];
}

inline std::vector<double> Doubles(const Json& array) {
  std::vector<double> values;
  for (const Json& item : array.items()) values.push_back(item.AsDouble());
  EXPECT_FALSE(values.empty()) << array.Dump();
  return values;
}

inline std::vector<float> Floats(const Json& array) {
  std::vector<float> values;
  for (const double value : Doubles(array)) values.push_back(static_cast<float>(value));
  return values;
}

}  // namespace nibble::golden
