// SPDX-License-Identifier: Apache-2.0
//
// MemoryReport: bytes a run holds, by class. Thread-safety: one thread, the backend's caller.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "worker/spec/estimate.h"
#include "worker/spec/journal.h"
#include "worker/train/model.h"
#include "worker/train/parameters.h"

namespace nibble {

// The classes of the estimate, measured: what the backend has allocated, which must serve this run
// only. `activations` includes the backend's own workspace, which is work memory of the step;
// `quantized` is all that the linear layers hold. Nothing is ever freed while training, so this is
// the peak.
MemoryBytes MeasureMemory(const Backend& backend, const Model& model, const Parameters& parameters);

// The same as a journal record, with the backend's `workspace` apart the process's `peak_rss`, and
// what is offloaded as `host`.
MemoryRecord MemoryRecordOf(const Backend& backend, const Model& model,
                            const Parameters& parameters);

}  // namespace nibble
