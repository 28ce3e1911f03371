// SPDX-License-Identifier: Apache-2.0
//
// The estimate of a device's memory against what the layers allocate on a backend that answers what
// it can do as a GPU does.
#include <gtest/gtest.h>

#include "kernels/recipe/product_path.h"
#include "worker/bench/timed_backend.h"
#include "worker/spec/estimate.h"
#include "worker/train/memory_report.h"
#include "worker/train/optimizer.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

// Allocates, quantizes and updates as the CPU backend; stores BF16, multiplies the codes that CUDA
// devices do, and makes codes of what it forms. Its products are zeros: nothing here depends on
// their values.
class AccountingBackend final : public bench::TimedBackend {
 public:
  AccountingBackend(std::unique_ptr<Backend> inner, bool forms)
      : TimedBackend(inner.get(), bench::ClockKind::kWall),
        inner_(std::move(inner)),
        forms_(forms) {}

  std::string_view name() const override { return kBackendCuda; }
  bool StoresBf16() const override { return true; }
  Support Supports(const OpQuery& query) const override {
    const bool left = CudaMultipliesCodes(query.left), right = CudaMultipliesCodes(query.right);
    if (query.op == Op::kQuantizedGemm) return left && right ? Support::kFast : Support::kReference;
    if (query.op == Op::kRmsNorm || query.op == Op::kSwiGlu) {
      return query.left == Elem::kF32 || (forms_ && left) ? Support::kFast : Support::kNone;
    }
    return TimedBackend::Supports(query);
  }
  Status RoundToBf16(ConstTensorView x, TensorView out) override {
    if (out.dtype == DType::kF32) return TimedBackend::RoundToBf16(x, out);
    return OkStatus();
  }
  Status CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                      TensorView gradient, TensorView losses) override {
    const bool in_place = gradient.dtype == DType::kF32;
    return TimedBackend::CrossEntropy(logits, targets, gradient_scale,
                                      in_place ? gradient : TensorView(), losses);
  }
  Status Gemm(GemmMode, ConstTensorView, Transpose, ConstTensorView, Transpose, bool accumulate,
              TensorView out) override {
    return accumulate ? OkStatus() : Fill(out, 0.0f);
  }
  Status QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor&,
                       const QuantizedTensor&, TensorView out) override {
    return params.accumulate ? OkStatus() : Fill(out, 0.0f);
  }

 private:
  std::unique_ptr<Backend> inner_;
  bool forms_;
};

RunConfig DeviceRun() {
  RunConfig config;
  config.model.vocab_size = 256;
  config.model.hidden_size = 128;
  config.model.intermediate_size = 352;
  config.model.layers = 2;
  config.model.heads = 4;
  config.model.kv_heads = 2;
  config.data.seq_len = 128;
  config.schedule.micro_batch = config.schedule.global_batch = 8;
  config.schedule.steps = 1;
  config.run.backend = kBackendCuda;
  return config;
}

// What one update allocates.
MemoryBytes OneUpdate(const RunConfig& config, const Recipe& recipe, bool forms) {
  const int64_t sequences = config.schedule.micro_batch;
  const auto tokens = static_cast<size_t>(sequences * config.data.seq_len);
  AccountingBackend backend(TestBackend(), forms);
  auto parameters = Parameters::Create(&backend, config.model, true, recipe.state).value();
  EXPECT_TRUE(parameters.Initialise(config.model, 1).ok());
  const auto model = Model::Create(&backend, &parameters,
                                   {config.model, recipe, sequences, config.data.seq_len,
                                    config.memory.recompute, config.memory.activations})
                         .value();
  const auto ids = TestTokens(static_cast<int64_t>(tokens) + 1, 256, 3);
  const std::span<const int32_t> all(ids);
  LinearStep step;
  step.defer_factor = true;  // as TrainingStep does
  const auto loss = model->ForwardBackward(step, {all.first(tokens), all.last(tokens)}, 0.01f);
  EXPECT_TRUE(loss.ok()) << loss.status().ToString();
  EXPECT_TRUE(ApplyAdamW(backend, {}, 1, 1e-3, 1.0, &parameters).ok());
  return MeasureMemory(backend, *model, parameters);
}

TEST(DeviceEstimate, QuantizedCopiesAreThoseOfTheLayers) {
  const RunConfig config = DeviceRun();
  for (const char* name : {"bf16", "fp4_foldi8", "fp4_fold8", "fp4_fold8_e4m3", "fp4_ms_paper",
                           "te_fp8_current", "fp8_lm"}) {
    SCOPED_TRACE(name);
    const Recipe recipe = FindRecipe(name).value();
    const int64_t estimated = EstimateRun(config, recipe).value().memory.quantized;
    const int64_t measured = OneUpdate(config, recipe, true).quantized;
    // Counters and offsets of a few bytes a tensor are not counted.
    EXPECT_NEAR(static_cast<double>(estimated), static_cast<double>(measured),
                0.005 * static_cast<double>(measured));
  }
}

// Gate and up have codes of dY at once: those of one more pair of gradients, with their scales.
TEST(DeviceEstimate, CountsBothPairsOfGradientsOfASwiGlu) {
  const RunConfig config = DeviceRun();
  const int64_t pair =
      2 * config.schedule.micro_batch * config.data.seq_len * config.model.intermediate_size;
  for (const char* name : {"fp4_foldi8", "fp4_fold8_e4m3"}) {
    SCOPED_TRACE(name);
    const Recipe recipe = FindRecipe(name).value();
    const int64_t apart = OneUpdate(config, recipe, false).quantized;
    const int64_t together = OneUpdate(config, recipe, true).quantized;
    EXPECT_GE(together - apart, pair);
    EXPECT_LT(together - apart, pair + pair / 20);
    EXPECT_GT(pair, together / 50);  // ten times what the test above lets pass
  }
}

// Maxima of scale groups leave a tile where it does not hold the groups; sums of corrected scales
// always do.
TEST(DeviceEstimate, CountsWhatQuantizersGatherOfGroups) {
  RunConfig config = DeviceRun();
  const int64_t elements =
      config.schedule.micro_batch * config.data.seq_len * config.model.intermediate_size;
  const auto activations = [&](int group, ScaleRule scale) {
    Recipe recipe = FindRecipe("graphcore_best").value();
    for (Quant& quant : recipe.linear.slots) {
      quant.group = group;
      quant.scale = scale;
      quant.correction_group = group;
    }
    return EstimateRun(config, recipe).value().memory.activations;
  };
  const int64_t tiles = activations(16, ScaleRule::kU53);
  EXPECT_EQ(activations(32, ScaleRule::kU53), tiles);
  EXPECT_EQ(activations(8, ScaleRule::kU53), tiles + elements / 8 * 4);
  EXPECT_EQ(activations(16, ScaleRule::kEden), tiles + elements / 16 * 16);
}

}  // namespace
}  // namespace nibble
