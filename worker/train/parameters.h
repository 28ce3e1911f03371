// SPDX-License-Identifier: Apache-2.0
//
// Parameters: the tensors of a LLaMA model under their Hugging Face names.
//
// Purpose: one ordered list tells initialisation, optimizer, checkpoints and fingerprints what
// exists. Weights, gradients and both AdamW moments are one allocation each, in list order, so that
// a collective or a norm over everything is one call. The moments may lie in another backend's
// memory (the host's): they visit the device tensor by tensor for their update, the next tensor's
// on their way in and the last one's on their way out meanwhile. Thread-safety: one thread, the
// backend's caller. Ownership: owns its device buffers; the backends must outlive it. Invariants:
// master weights are FP32; every tensor starts on kTensorAlign bytes; the gaps between tensors are
// zero and stay zero.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/recipe/recipe.h"
#include "worker/spec/run_config.h"

namespace nibble {

// State of a recipe beyond weights and moments, by name, one dimension each; checkpoints keep it.
using RecipeTensors = std::map<std::string, std::vector<float>>;

inline constexpr int64_t kTensorAlignElements = 16;  // 64 bytes: one cache line, one AVX-512 word

struct ParameterInfo {
  std::string name;  // "model.layers.3.mlp.down_proj.weight"
  int64_t rows = 0;  // output features; 1 for norms
  int64_t cols = 0;
  int64_t offset = 0;  // elements, in each of the four allocations
  bool is_norm = false;
  bool is_residual_output = false;  // o_proj and down_proj: they write into the residual stream
  int64_t layer = -1;               // -1: outside the blocks

  int64_t size() const { return rows * cols; }
  // Shape as files state it: norms have one dimension.
  std::vector<int64_t> shape() const;
};

// The list for a model; vocab_size must be resolved. With tied embeddings there is no lm_head.
std::vector<ParameterInfo> ListParameters(const ModelConfig& model);

// Which third of the model a parameter belongs to: "first" (embedding, block 0), "middle", or
// "last" (last block, final norm, head).
const char* PlaceOf(const ParameterInfo& info, int64_t layers);
const char* PlaceOfLayer(int64_t layer, int64_t layers);

// Per block, in list order.
enum class BlockParameter : uint8_t {
  kInputNorm,
  kQuery,
  kKey,
  kValue,
  kOutput,
  kPostNorm,
  kGate,
  kUp,
  kDown,
};
inline constexpr int kBlockParameters = 9;
BlockParameter ParameterOf(LinearKind kind);

class Parameters {
 public:
  // Weights are undefined, gradients and moments zero. `with_training_state` false allocates
  // weights only. `host`, whose memory the host reads, holds the moments; nullptr: `backend` does.
  // RESOURCE_EXHAUSTED when a backend has no memory left.
  static Result<Parameters> Create(Backend* backend, const ModelConfig& model,
                                   bool with_training_state = true,
                                   const StatePrecision& precision = {}, Backend* host = nullptr);

  const std::vector<ParameterInfo>& list() const { return list_; }
  const ParameterInfo* Find(std::string_view name) const;  // nullptr when absent
  size_t IndexOf(int64_t layer, BlockParameter which) const;
  size_t embedding() const { return 0; }
  size_t final_norm() const { return final_norm_; }
  size_t head() const { return head_; }  // the embedding when tied

  TensorView weight(size_t index) const { return ViewOf(weights_, index); }
  TensorView gradient(size_t index) const { return ViewOf(gradients_, index); }
  // Where the moments lie: the backend that copies them in and out.
  Backend& moments_backend() const { return *moments_backend_; }
  bool offloads_moments() const { return moments_backend_ != backend_; }
  // f32, bf16, f16, or u8 codes of E4M3, as the precision says; codes are scaled by scales(index).
  TensorView first_moment(size_t index) const {
    return ViewOf(first_moments_, index, StateType(precision_.m));
  }
  TensorView second_moment(size_t index) const {
    return ViewOf(second_moments_, index, StateType(precision_.v));
  }
  // Both moments of a tensor in device memory, for its update: as they are, or brought to one of
  // two places that the tensors take in turn, while those of index + 1 set out for the other.
  // StoreMoments sends them back; it comes before the Fetch after next. The host may read them
  // after SettleMoments.
  struct Moments {
    TensorView first, second;
  };
  Result<Moments> FetchMoments(size_t index);
  Status StoreMoments(size_t index, const Moments& moments);
  Status SettleMoments() const;
  const StatePrecision& precision() const { return precision_; }
  StateScales& scales(size_t index) { return scales_[index]; }
  // The scales as state of a recipe, where a format has any, and back.
  void SaveScales(RecipeTensors* tensors) const;
  // DATA_LOSS when they are missing or do not fit the list.
  Status RestoreScales(const RecipeTensors& tensors);

  // Everything at once, gaps included.
  TensorView all_weights() const { return AllOf(weights_); }
  TensorView all_gradients() const { return AllOf(gradients_); }

  int64_t count() const { return count_; }  // parameters, gaps excluded
  int64_t weight_bytes() const { return weights_.capacity_bytes(); }
  int64_t gradient_bytes() const { return gradients_.capacity_bytes(); }
  // Of the moments on the device: all, or the places they visit.
  int64_t optimizer_bytes() const {
    int64_t bytes = offloads_moments() ? 0 : moment_bytes();
    for (const Place& place : places_) {
      bytes += place.first.capacity_bytes() + place.second.capacity_bytes();
    }
    return bytes;
  }
  // Of moments kept elsewhere.
  int64_t host_bytes() const { return offloads_moments() ? moment_bytes() : 0; }

  // normal(0, std) for matrices, 1 for norms. Element i of tensor t is a pure function of
  // (seed, t, i). std is init_std, times 1/sqrt(2 * layers) for the projections that write into the
  // residual stream, so that its variance does not grow with depth (GPT-2's initialisation).
  // `threads` of the host share the work and do not change it.
  Status Initialise(const ModelConfig& model, uint64_t seed, int threads = 1);

  // SHA-256 over names, shapes and bytes of all weights, in list order.
  Result<std::string> Fingerprint() const;

 private:
  static DType StateType(StateElem elem);
  TensorView ViewOf(const Buffer& buffer, size_t index, DType type = DType::kF32) const;
  TensorView AllOf(const Buffer& buffer) const;
  Status MakePlaces(int64_t first_bytes, int64_t second_bytes);
  Moments PlacedMoments(size_t index);
  Status SendIn(size_t index);
  int64_t moment_bytes() const {
    return first_moments_.capacity_bytes() + second_moments_.capacity_bytes();
  }

  Backend* backend_ = nullptr;
  Backend* moments_backend_ = nullptr;
  std::vector<ParameterInfo> list_;
  size_t final_norm_ = 0;
  size_t head_ = 0;
  int64_t count_ = 0;
  int64_t elements_ = 0;  // with gaps
  Buffer weights_;
  Buffer gradients_;
  Buffer first_moments_;
  Buffer second_moments_;
  // Host memory locked for transfers as long as this lives.
  struct Pin {
    Backend* backend;
    void operator()(void* memory) const { backend->UnpinHost(memory); }
  };
  // Where offloaded moments are updated, in device memory; each has a lane of its own.
  struct Place {
    Buffer first, second;
    int64_t holds = -1;  // the tensor that is there or on its way in
  };
  std::array<Place, Backend::kTransferLanes> places_;
  std::unique_ptr<void, Pin> pinned_first_{nullptr, Pin{nullptr}};
  std::unique_ptr<void, Pin> pinned_second_{nullptr, Pin{nullptr}};
  StatePrecision precision_;
  std::vector<StateScales> scales_;  // by parameter
};

}  // namespace nibble
