// SPDX-License-Identifier: Apache-2.0
//
// Specs: a submitted JobSpec checked, completed with its defaults, and translated for the core.
//
// Thread-safety: pure functions. Every mistake is reported, not only the first, each with the path
// of its field as it is written in job.yaml, the value, the limit and the fix.
// Invariant: the canonical JSON of a resolved spec has sorted keys and plain numbers, so equal
// specs have equal text; resolving a resolved spec changes nothing.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "kernels/recipe/recipe.h"
#include "nibble/v1/job.pb.h"
#include "server/core/types.h"
#include "worker/spec/run_config.h"

namespace nibble::rpc {

struct ResolvedSpec {
  v1::JobSpec proto;  // defaults filled in
  std::string json;   // canonical JSON of `proto`: what is stored, hashed and given to workers
  RunConfig run;      // the training part
  Recipe recipe;
};

// Meaningful only when no error was added.
ResolvedSpec ResolveSpec(const v1::JobSpec& submitted, std::vector<FieldError>& errors);

// The checks of everything that is not training: names, queue, priority, resources, retry, env.
void CheckSchedulingFields(const v1::JobSpec& spec, std::vector<FieldError>& errors);

// Number behind a priority class; NOT_FOUND lists the classes.
Result<int> PriorityOfClass(const std::string& name);

// What the core keeps; `memory_bytes` is what a device must have when the spec does not say.
core::JobSpec ToCoreSpec(const ResolvedSpec& resolved, const std::string& user,
                         int64_t memory_bytes);

// Feature that stands for "is the worker of this id"; every device proves its own worker's.
std::string WorkerFeature(const std::string& worker_id);

// JSON of a message with sorted keys, 64-bit integers as numbers. INTERNAL when it has none.
Result<std::string> CanonicalJson(const google::protobuf::Message& message);
// The spec in its canonical JSON. DATA_LOSS when the text is not one.
Result<v1::JobSpec> SpecFromJson(const std::string& json);

}  // namespace nibble::rpc
