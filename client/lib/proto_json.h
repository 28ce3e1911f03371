// SPDX-License-Identifier: Apache-2.0
//
// Messages as JSON and YAML for people and programs: the stable names of `-o json` and `-o yaml`.
//
// Names are lowerCamelCase; 64-bit integers are numbers; times are RFC 3339 text; durations are
// text such as "1h30m"; enum values are without their prefix ("RUNNING"). A JobSpec shows only
// what was set, so that it can be submitted again; other messages show every field but absent
// sub-messages. Thread-safety: pure functions.
#pragma once

#include <google/protobuf/message.h>

#include <string>

#include "base/json.h"
#include "base/status.h"
#include "nibble/v1/job.pb.h"

namespace nibble {

Json MessageToJson(const google::protobuf::Message& message);

// Block YAML with two spaces of indentation; texts that YAML would read as something else are
// quoted.
std::string JsonToYaml(const Json& json);

// "RUNNING", "TIMED_OUT"; "UNKNOWN(42)" for a number this build does not know.
std::string JobStateName(v1::JobState state);
bool IsTerminal(v1::JobState state);
// Case does not matter. INVALID_ARGUMENT lists the known names.
Result<v1::JobState> ParseJobState(const std::string& name);

}  // namespace nibble
