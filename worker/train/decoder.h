// SPDX-License-Identifier: Apache-2.0
//
// Decoder: runs a trained model forward, token after token, with a key-value cache.
//
// Weights are used as they are (FP32), without the recipe's quantization: what any program that
// loads the checkpoint computes. Thread-safety: one thread, the backend's caller. Ownership: owns
// cache and work buffers; borrows backend and parameters, which must outlive it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/spec/run_config.h"
#include "worker/train/parameters.h"

namespace nibble {

class Decoder {
 public:
  // Tokens computed at a time while reading a prompt.
  static constexpr int64_t kChunkTokens = 64;

  // `max_positions`: cache size. RESOURCE_EXHAUSTED when the backend has no memory left.
  static Result<Decoder> Create(Backend* backend, const Parameters* parameters,
                                const ModelConfig& model, int64_t max_positions);

  // Appends `ids` to the sequence. Returns the logits after each of them, (ids.size(), V)
  // row-major. OUT_OF_RANGE when the sequence would exceed max_positions or an id the vocabulary.
  Result<std::vector<float>> Append(std::span<const int32_t> ids);

  int64_t position() const { return position_; }

 private:
  struct Views {
    TensorView x, norm, rstd, query, attention, lse, gate, up, logits, ids;
  };

  Decoder(Backend* backend, const Parameters* parameters, const ModelConfig& model,
          int64_t max_positions)
      : backend_(*backend),
        parameters_(*parameters),
        model_(model),
        max_positions_(max_positions) {}
  Result<Views> ViewsFor(int64_t tokens);
  Status RunBlock(int64_t layer, const Views& v, int64_t tokens);
  Status AppendChunk(std::span<const int32_t> ids, float* logits);

  Backend& backend_;
  const Parameters& parameters_;
  ModelConfig model_;
  int64_t max_positions_;
  int64_t position_ = 0;
  Buffer keys_, values_;  // (layers * max_positions, kv_size)
  Buffer x_, norm_, rstd_, query_, attention_, lse_, gate_, up_, logits_, ids_;
};

}  // namespace nibble
