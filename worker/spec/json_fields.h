// SPDX-License-Identifier: Apache-2.0
//
// JsonFields: reads the keys of one JSON object into variables and reports every mistake.
//
// Each Read names a key once; Finish then reports the keys nobody asked for. Accepts what proto3
// JSON writes: 64-bit integers as strings, NaN/Infinity as strings.
// Thread-safety: thread-compatible. Ownership: borrows the object and the error list.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/json.h"
#include "worker/spec/run_config.h"

namespace nibble {

class JsonFields {
 public:
  // `path` is "" for the root. A null object reads as empty; another type is an error.
  JsonFields(const Json& object, std::string path, std::vector<FieldError>& errors);

  // Each keeps the variable's value when the key is absent or null.
  void Read(const char* key, std::string& out);
  void Read(const char* key, bool& out);
  void Read(const char* key, std::vector<std::string>& out);
  void ReadInt(const char* key, int64_t& out, int64_t min, int64_t max);
  void ReadReal(const char* key, double& out, double min, double max);

  // The value under `key` for a nested section; null when absent.
  const Json& Section(const char* key);
  // A key that is known here but read by somebody else.
  void Ignore(const char* key) { known_.push_back(key); }
  // Reports unknown keys, with the nearest known one.
  void Finish();

  void Error(const std::string& key, std::string description);

 private:
  const Json* Take(const char* key);

  const Json& object_;
  std::string path_;
  std::vector<FieldError>& errors_;
  std::vector<std::string> known_;
};

}  // namespace nibble
