// SPDX-License-Identifier: Apache-2.0
//
// memory.activations: which values a block rounds to BF16, and whole runs under it.
#include <cstring>

#include "kernels/formats/bf16.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

std::vector<float> ValuesOf(ConstTensorView x) { return {x.f32(), x.f32() + x.size()}; }

std::vector<float> Rounded(std::vector<float> values) {
  for (float& value : values) value = formats::RoundBf16(value);
  return values;
}

bool InBf16(ConstTensorView x) {
  const std::vector<float> values = ValuesOf(x);
  return values == Rounded(values);
}

// A model of its own after one forward pass. FP32 layers: they keep their inputs and multiply them
// as they are.
struct Pass {
  explicit Pass(Activations activations)
      : backend(TestBackend()),
        config(TinyModel()),
        parameters(Parameters::Create(backend.get(), config, true).value()) {
    config.init_std = 0.2;
    EXPECT_TRUE(parameters.Initialise(config, 3).ok());
    Model::Options options = {config, FindRecipe("fp32").value(), 2, 10};
    options.activations = activations;
    model = Model::Create(backend.get(), &parameters, options).value();
    const auto tokens = TestTokens(21, config.vocab_size, 5);
    const std::span<const int32_t> all(tokens);
    EXPECT_TRUE(model->Forward({}, {all.first(20), all.last(20)}).ok());
  }
  const BlockViews& block(size_t index) const { return model->blocks()[index].views(); }
  TensorView weight(int64_t layer, BlockParameter which) const {
    return parameters.weight(parameters.IndexOf(layer, which));
  }
  // x times the transposed weight, rounded.
  std::vector<float> Projected(ConstTensorView x, TensorView w) const {
    std::vector<float> out(static_cast<size_t>(x.rows * w.rows));
    EXPECT_TRUE(backend
                    ->Gemm(GemmMode::kF32, x, Transpose::kNo, w, Transpose::kYes, false,
                           {out.data(), x.rows, w.rows})
                    .ok());
    return Rounded(out);
  }

  std::unique_ptr<Backend> backend;
  ModelConfig config;
  Parameters parameters;
  std::unique_ptr<Model> model;
};

TEST(Activations, ProjectionsAreRoundedOnceAndNothingElse) {
  using P = BlockParameter;
  const Pass wide(Activations::kFp32), narrow(Activations::kBf16);
  // The first block has the same input in both: query and key after their rotation, value.
  const BlockViews& w = wide.block(0);
  EXPECT_FALSE(InBf16(w.query));
  EXPECT_EQ(ValuesOf(narrow.block(0).query), Rounded(ValuesOf(w.query)));
  EXPECT_EQ(ValuesOf(narrow.block(0).key), Rounded(ValuesOf(w.key)));
  EXPECT_EQ(ValuesOf(narrow.block(0).value), Rounded(ValuesOf(w.value)));
  for (int64_t layer = 0; layer < narrow.config.layers; ++layer) {
    const BlockViews& b = narrow.block(static_cast<size_t>(layer));
    const AttentionParams attention = {2, 10, 10, 4, 2, narrow.config.head_dim(), GemmMode::kF32};
    std::vector<float> out(static_cast<size_t>(b.query.size())), lse(2 * 4 * 10);
    ASSERT_TRUE(narrow.backend
                    ->AttentionForward(attention, b.query, b.key, b.value,
                                       {out.data(), b.query.rows, b.query.cols},
                                       {lse.data(), 8, 10})
                    .ok());
    EXPECT_EQ(ValuesOf(b.attention_out), Rounded(out));
    EXPECT_EQ(ValuesOf(b.lse), lse);
    EXPECT_EQ(ValuesOf(b.gate), narrow.Projected(b.mlp_in, narrow.weight(layer, P::kGate)));
    EXPECT_EQ(ValuesOf(b.up), narrow.Projected(b.mlp_in, narrow.weight(layer, P::kUp)));
    for (const TensorView& x : {b.input, b.attention_in, b.middle, b.mlp_in, b.mlp_hidden}) {
      EXPECT_FALSE(InBf16(x));
    }
  }
}

class ActivationsRunTest : public RunTest {};

TEST_F(ActivationsRunTest, TheSpecDecidesAndTheCpuSaysWhatItIsFor) {
  RunConfig config = Config("fp32", "fp4_foldi8", 12);
  config.run.journal = true;
  const EndRecord wide = Run(config);
  config.run.dir = Path("bf16");
  config.memory.activations = Activations::kBf16;
  const EndRecord narrow = Run(config);
  ASSERT_EQ(wide.reason, kEndCompleted) << wide.message;
  ASSERT_EQ(narrow.reason, kEndCompleted) << narrow.message;
  EXPECT_NE(narrow.weights_sha256, wide.weights_sha256);
  EXPECT_NEAR(narrow.final_validation_loss, wide.final_validation_loss,
              0.02 * wide.final_validation_loss);
  bool said = false;
  for (const LogRecord& log : Only<LogRecord>(Journal("bf16"))) {
    said |= log.text.find("memory.activations: bf16 rounds") != std::string::npos;
  }
  EXPECT_TRUE(said);
}

}  // namespace
}  // namespace nibble
