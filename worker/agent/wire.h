// SPDX-License-Identifier: Apache-2.0
//
// Wire: the plain structs of messages.h to and from nibble.v1. Pure functions, thread-safe.
#pragma once

#include "nibble/v1/worker.pb.h"
#include "worker/agent/messages.h"

namespace nibble::agent {

v1::AttemptKey ToProto(const AttemptKey& key);
v1::AttemptReport ToProto(const AttemptReport& report);
v1::Device ToProto(const DeviceInfo& device);
v1::JournalRecord ToProto(const JournalRecord& record);
v1::Telemetry ToProto(const TelemetryBatch& batch);

AttemptKey FromProto(const v1::AttemptKey& key);
StartRequest FromProto(const v1::StartAttempt& start);
StopRequest FromProto(const v1::StopAttempt& stop);

}  // namespace nibble::agent
