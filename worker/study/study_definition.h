// SPDX-License-Identifier: Apache-2.0
//
// StudyDefinition: a comparison of recipes as data: one base run, arms that differ from it in the
// recipe alone, the learning rates each arm may choose from, and the seeds all arms share.
//
// A file may extend another (`extends`), and holds named scales: merge patches that shrink or
// stretch it (`quick`, `test`). docs/performance/convergence.md describes the form.
// Thread-safety: value types and free functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace nibble {

inline constexpr char kFullScale[] = "full";
inline constexpr int kMaxArms = 200;
inline constexpr int kMaxSeeds = 30;
inline constexpr int kMaxRates = 12;

struct StudyArm {
  std::string name;                    // [a-z0-9_.-], unique in the study
  std::string label;                   // for people; the name when not given
  std::string recipe;                  // built-in row the patch applies to
  Json patch;                          // {"linear.Xf.round": "away"}; null removes a field
  std::vector<double> learning_rates;  // peak rates to try; never empty
};

struct StudyCorpus {
  int64_t vocab_size = 2048;
  double val_fraction = 0.015;  // of each text, taken from its end
};

struct StudyDefinition {
  std::string name;
  std::string scale;  // "full" or the name of one of `scales`
  std::string title;
  std::string question;  // what the study asks, one sentence
  Json run;              // keys of a job: model, data.seqLen, optimizer, schedule, metrics
  StudyCorpus corpus;
  std::vector<int64_t> seeds;  // the first one also chooses the learning rate
  std::string baseline;        // name of the arm the others are compared with
  std::vector<StudyArm> arms;

  // "fig6a", or "fig6a.quick" at another scale than full.
  std::string id() const { return scale == kFullScale ? name : name + "." + scale; }
  int baseline_index() const;
};

// Reads `folder`/NAME.json with everything it extends, at a scale. NOT_FOUND lists the studies
// there are; INVALID_ARGUMENT names file, field, value and limit.
Result<StudyDefinition> LoadStudy(const std::string& folder, const std::string& name,
                                  const std::string& scale);

// The same from JSON that extends nothing.
Result<StudyDefinition> ParseStudy(const std::string& name, const Json& json,
                                   const std::string& scale);

struct StudyListing {
  std::string name;
  std::string title;
};
// Every file of the folder that has arms, sorted by name.
Result<std::vector<StudyListing>> ListStudies(const std::string& folder);

}  // namespace nibble
