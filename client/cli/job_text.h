// SPDX-License-Identifier: Apache-2.0
//
// Jobs and nodes as cells and lines of text, shared by ps, describe, top and watch.
// Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "client/cli/table.h"
#include "nibble/v1/controller.pb.h"
#include "nibble/v1/job.pb.h"

namespace nibble::cli {

inline constexpr char kMissing[] = "-";

double SecondsSince(const google::protobuf::Timestamp& time, int64_t now_ms);
std::string TimeText(const google::protobuf::Timestamp& time);  // "" when absent (zero)
std::string LossText(double loss);                              // "2.8910", "NaN"
std::string StepText(const v1::Progress& progress);             // "120/300"
std::string EtaText(const v1::Job& job);

// ID NAME USER QUEUE PRI STATE GPUS STEP LOSS TOK/S ETA RESTARTS AGE REASON; wide adds NODES,
// ATTEMPT, CKPT, RECIPE.
Table JobTable(const std::vector<v1::Job>& jobs, bool wide, int64_t now_ms);

// ID HOST POOL STATE DEVICES FREE MEMORY FEATURES JOBS HEARTBEAT; wide adds VERSION, GFLOP/S and
// the drain's reason.
Table NodeTable(const std::vector<v1::Node>& nodes, bool wide, int64_t now_ms);

// Classes of memory in the order people expect (weights first), then "total" (their sum unless it
// is given) and "peak_rss". Empty without classes.
using MemoryClasses = std::map<std::string, int64_t>;
std::vector<std::pair<std::string, int64_t>> OrderedMemory(const MemoryClasses& bytes);

// "weights 6.6 MiB, gradients 6.6 MiB, ... total 52 MiB".
std::string MemoryText(const google::protobuf::Map<std::string, int64_t>& bytes);

}  // namespace nibble::cli
