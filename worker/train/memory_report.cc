// SPDX-License-Identifier: Apache-2.0
#include "worker/train/memory_report.h"

#include <sys/resource.h>

namespace nibble {

MemoryBytes MeasureMemory(const Backend& backend, const Model& model,
                          const Parameters& parameters) {
  MemoryBytes bytes;
  bytes.weights = parameters.weight_bytes();
  bytes.gradients = parameters.gradient_bytes();
  bytes.optimizer = parameters.optimizer_bytes();
  bytes.host = parameters.host_bytes();
  bytes.activations = model.activation_bytes() + backend.workspace_bytes();
  bytes.quantized = backend.allocated_bytes() - bytes.total();
  return bytes;
}

MemoryRecord MemoryRecordOf(const Backend& backend, const Model& model,
                            const Parameters& parameters) {
  const MemoryBytes bytes = MeasureMemory(backend, model, parameters);
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const int64_t peak_rss = static_cast<int64_t>(usage.ru_maxrss) * 1024;  // Linux counts KiB
  MemoryRecord record{{{"weights", bytes.weights},
                       {"gradients", bytes.gradients},
                       {"optimizer", bytes.optimizer},
                       {"activations", bytes.activations - backend.workspace_bytes()},
                       {"quantized", bytes.quantized},
                       {"workspace", backend.workspace_bytes()},
                       {"peak_rss", peak_rss}}};
  if (bytes.host > 0) record.bytes["host"] = bytes.host;
  return record;
}

}  // namespace nibble
