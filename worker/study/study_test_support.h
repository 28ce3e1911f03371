// SPDX-License-Identifier: Apache-2.0
//
// Test support: a small study, data that exists only as names, and runs with chosen results.
// Include from tests only.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "worker/study/study_plan.h"

namespace nibble {

inline constexpr char kTestStudy[] = R"j({
  "title": "Test", "question": "?", "baseline": "bf16",
  "run": {"model": {"hiddenSize": 32, "intermediateSize": 64, "layers": 2, "heads": 2},
          "data": {"seqLen": 16}, "schedule": {"steps": 10, "microBatch": 4}},
  "learning_rates": [1e-3, 2e-3, 4e-3], "seeds": [7, 8, 9],
  "arms": ["fp4_direct", "bf16",
           {"recipe": "fp4_direct", "name": "away", "label": "ties away",
            "patch": {"linear.Xf.round": "away"}}]
})j";

inline StudyPlan TestPlan(const std::string& json = kTestStudy) {
  StudyData data;
  data.train_folder = "tokens/train";
  data.validation_glob = "tokens/validation/train-*.bin";
  data.fingerprint = "f00d";
  data.source = "own text";
  auto definition = ParseStudy("test", Json::Parse(json).value(), kFullScale);
  EXPECT_TRUE(definition.ok()) << definition.status().ToString();
  return MakePlan(*std::move(definition), data).value();
}

// Results by hash.
class TestResults {
 public:
  explicit TestResults(const StudyPlan& plan) : plan_(plan) {}

  RunRecord& Set(const RunKey& key, RunState state, double loss = 0) {
    RunRecord record;
    record.hash = RunHash(ConfigOf(plan_, key), plan_.data.fingerprint);
    record.state = state;
    record.final_validation_loss = loss;
    record.revision = "r1";
    record.tokens_per_second = 100;
    record.train_seconds = 3600;
    record.validation = {{0, 6.0}, {5, loss + 1}, {10, loss}};
    RunRecord& kept = records_[record.hash];
    kept = std::move(record);
    return kept;
  }
  ResultLookup Find() const {
    return [this](const std::string& hash) {
      const auto found = records_.find(hash);
      return found == records_.end() ? nullptr : &found->second;
    };
  }

 private:
  const StudyPlan& plan_;
  std::map<std::string, RunRecord> records_;
};

// Whether the text is one well-formed XML element: tags balanced, attributes quoted and unique
// names, no stray '<' or '&'. "" when it is, else what is wrong.
inline std::string XmlFault(const std::string& text) {
  std::vector<std::string> open;
  bool closed = false;
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '<') {
      if (text[i] == '&') {
        const size_t end = text.find(';', i);
        const std::string entity = text.substr(i, end == std::string::npos ? 8 : end - i + 1);
        const bool known = entity == "&amp;" || entity == "&lt;" || entity == "&gt;" ||
                           entity == "&quot;" || entity == "&apos;";
        if (!known) return "stray ampersand: " + entity;
      }
      if (open.empty() && text[i] != '\n') return "text outside the root element";
      ++i;
      continue;
    }
    const size_t end = text.find('>', i);
    if (end == std::string::npos) return "an unclosed tag";
    std::string tag = text.substr(i + 1, end - i - 1);
    i = end + 1;
    if (tag.starts_with("/")) {
      if (open.empty() || open.back() != tag.substr(1))
        return "unexpected </" + tag.substr(1) + ">";
      open.pop_back();
      closed = open.empty();
      continue;
    }
    if (closed) return "a second root element";
    const bool empty = tag.ends_with("/");
    if (empty) tag.pop_back();
    size_t at = tag.find_first_of(" \n");
    const std::string name = tag.substr(0, at);
    while (at != std::string::npos &&
           (at = tag.find_first_not_of(" \n", at)) != std::string::npos) {
      const size_t equals = tag.find('=', at);
      if (equals == std::string::npos || tag[equals + 1] != '"') return "attribute in <" + tag;
      const size_t quote = tag.find('"', equals + 2);
      if (quote == std::string::npos) return "unclosed attribute in <" + tag;
      if (tag.substr(equals + 2, quote - equals - 2).find('<') != std::string::npos) return "<";
      at = quote + 1;
    }
    if (!empty) open.push_back(name);
  }
  return open.empty() && closed ? "" : "unclosed element";
}

}  // namespace nibble
