// SPDX-License-Identifier: Apache-2.0
//
// Points: journal records as they travel <-> as the stores keep them. Pure functions.
#pragma once

#include <vector>

#include "nibble/v1/controller.pb.h"
#include "nibble/v1/metrics.pb.h"
#include "server/store/log_store.h"
#include "server/store/points.h"

namespace nibble::rpc {

// What the metric store keeps of the records: steps, validations, health, checkpoints.
store::PointBatch ToPoints(const std::vector<v1::JournalRecord>& records);
// The log lines among them; the source cursor is the record's seq.
std::vector<store::LogLine> ToLogLines(const std::vector<v1::JournalRecord>& records);

v1::JournalRecord FromPoint(const store::StepPoint& point);
v1::JournalRecord FromPoint(const store::ValidationPoint& point);
v1::JournalRecord FromPoint(const store::HealthPoint& point);
v1::JournalRecord FromPoint(const store::CheckpointPoint& point);

// The step a record is about; -1 for one that has none.
int64_t StepOf(const v1::JournalRecord& record);

}  // namespace nibble::rpc
