// SPDX-License-Identifier: Apache-2.0
//
// The published stories260K model against an independent float64 computation: logits, greedy text,
// losses and loss derivatives. Needs oracle/ below NIBBLE_DATA_DIR.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "base/strings.h"
#include "worker/data/test_data.h"
#include "worker/train/decoder.h"
#include "worker/train/sampler.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

constexpr double kLogitTolerance = 1e-3;       // absolute; logits reach 30
constexpr double kLossTolerance = 1e-4;        // relative, or absolute below a loss of 1
constexpr double kDerivativeTolerance = 1e-3;  // relative

// Rows of interleaved rotary pairs (2i, 2i + 1) into half-split order (i, i + half), per head.
std::vector<float> HalfSplitRows(const float* w, int64_t rows, int64_t cols, int64_t head_dim) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  const int64_t half = head_dim / 2;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / head_dim, j = row % head_dim;
    const int64_t source = head * head_dim + (j < half ? 2 * j : 2 * (j - half) + 1);
    std::memcpy(out.data() + row * cols, w + source * cols,
                static_cast<size_t>(cols) * sizeof(float));
  }
  return out;
}

// Row of the file's matrix as a row of ours.
int64_t HalfSplitRow(int64_t row, int64_t head_dim) {
  const int64_t head = row / head_dim, j = row % head_dim;
  return head * head_dim + j / 2 + (j % 2) * head_dim / 2;
}

std::vector<int32_t> Ids(const Json& json) {
  std::vector<int32_t> ids;
  for (const Json& id : json.items()) ids.push_back(static_cast<int32_t>(id.AsInt()));
  return ids;
}

class OracleTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string weights = TestDataPath("oracle/stories260K.bin");
    const std::string reference = TestDataPath("oracle/stories260K.reference.json");
    if (weights.empty() || reference.empty()) {
      GTEST_SKIP() << "oracle/stories260K.* is not below NIBBLE_DATA_DIR";
    }
    reference_ = Json::Parse(ReadFile(reference).value()).value();
    LoadWeights(ReadFile(weights).value());
  }

  void LoadWeights(const std::string& bytes) {
    int32_t header[7];
    std::memcpy(header, bytes.data(), sizeof header);
    model_.hidden_size = header[0];
    model_.intermediate_size = header[1];
    model_.layers = header[2];
    model_.heads = header[3];
    model_.kv_heads = header[4];
    model_.vocab_size = header[5];
    model_.tied_embeddings = true;
    backend_ = TestBackend();
    parameters_.emplace(Parameters::Create(backend_.get(), model_).value());
    values_.resize((bytes.size() - sizeof header) / sizeof(float));
    std::memcpy(values_.data(), bytes.data() + sizeof header, values_.size() * sizeof(float));
    using P = BlockParameter;
    const float* next = values_.data();
    next = Load(parameters_->embedding(), next);
    const P order[] = {P::kInputNorm, P::kQuery, P::kKey,  P::kValue, P::kOutput,
                       P::kPostNorm,  P::kGate,  P::kDown, P::kUp};
    for (const P which : order) {
      for (int64_t layer = 0; layer < model_.layers; ++layer) {
        next =
            Load(parameters_->IndexOf(layer, which), next, which == P::kQuery || which == P::kKey);
      }
    }
    Load(parameters_->final_norm(), next);
  }

  const float* Load(size_t index, const float* source, bool rotary = false) {
    const TensorView w = parameters_->weight(index);
    if (rotary) {
      const auto rows = HalfSplitRows(source, w.rows, w.cols, model_.head_dim());
      EXPECT_TRUE(backend_->CopyIn(w.data, rows.data(), w.size_bytes()).ok());
    } else {
      EXPECT_TRUE(backend_->CopyIn(w.data, source, w.size_bytes()).ok());
    }
    return source + w.size();
  }

  std::unique_ptr<Model> MakeModel(int64_t seq_len) {
    return Model::Create(backend_.get(), &*parameters_,
                         {model_, FindRecipe("fp32").value(), 1, seq_len})
        .value();
  }

  // Loss sum over a sequence's next-token predictions.
  double LossOf(Model& model, const std::vector<int32_t>& ids) {
    const std::span<const int32_t> all(ids);
    const auto loss = model.Forward({}, {all.first(ids.size() - 1), all.last(ids.size() - 1)});
    EXPECT_TRUE(loss.ok()) << loss.status().ToString();
    return loss.value_or(NAN);
  }

  // Our gradient of an entry the reference names.
  double Derivative(const Json& item) {
    const std::string name = item["param"].AsString();
    int64_t row = item["row"].AsInt();
    const int64_t col = item["col"].AsInt();
    size_t index = parameters_->embedding();
    if (name == "norm") {
      index = parameters_->final_norm();
    } else if (name.rfind("layers.", 0) == 0) {
      const int64_t layer = name[7] - '0';
      const std::string which = name.substr(9);
      using P = BlockParameter;
      const std::pair<const char*, P> names[] = {{"wq", P::kQuery},
                                                 {"wk", P::kKey},
                                                 {"wv", P::kValue},
                                                 {"wo", P::kOutput},
                                                 {"w1", P::kGate},
                                                 {"w2", P::kDown},
                                                 {"w3", P::kUp},
                                                 {"attention_norm", P::kInputNorm},
                                                 {"ffn_norm", P::kPostNorm}};
      for (const auto& [key, parameter] : names) {
        if (which == key) index = parameters_->IndexOf(layer, parameter);
      }
      if (which == "wq" || which == "wk") row = HalfSplitRow(row, model_.head_dim());
    } else {
      EXPECT_EQ(name, "tok_embeddings");
    }
    const TensorView g = parameters_->gradient(index);
    return g.f32()[row * g.cols + col];
  }

  Json reference_;
  ModelConfig model_;
  std::unique_ptr<Backend> backend_;
  std::optional<Parameters> parameters_;
  std::vector<float> values_;
};

TEST_F(OracleTest, LogitsEqualTheReference) {
  double largest = 0;
  int compared = 0;
  for (const Json& sequence : reference_["sequences"].items()) {
    Decoder decoder = Decoder::Create(backend_.get(), &*parameters_, model_, 64).value();
    const std::vector<float> logits = decoder.Append(Ids(sequence["ids"])).value();
    for (const auto& [key, expected] : sequence.members()) {
      const std::string prefix = "logits_pos";
      if (key.rfind(prefix, 0) != 0) continue;
      const int64_t position = ParseInt(key.substr(prefix.size())).value();
      ASSERT_EQ(static_cast<int64_t>(expected.size()), model_.vocab_size);
      ++compared;
      for (int64_t v = 0; v < model_.vocab_size; ++v) {
        const double got = logits[static_cast<size_t>(position * model_.vocab_size + v)];
        largest = std::max(largest, std::abs(got - expected.At(static_cast<size_t>(v)).AsDouble()));
      }
    }
  }
  EXPECT_GE(compared, 3);
  std::printf("largest logit error: %.3g\n", largest);
  EXPECT_LE(largest, kLogitTolerance);
}

TEST_F(OracleTest, GreedyTokensEqualTheReference) {
  const std::vector<int32_t> expected = Ids(reference_["greedy"]["ids"]);
  const auto steps = static_cast<int64_t>(expected.size());
  Decoder decoder = Decoder::Create(backend_.get(), &*parameters_, model_, steps).value();
  Sampler sampler({0.0, 0, 0});
  std::vector<int32_t> ids = {static_cast<int32_t>(reference_["greedy"]["start"].AsInt())};
  while (ids.size() < expected.size()) {
    const std::vector<float> logits = decoder.Append({&ids.back(), 1}).value();
    ids.push_back(sampler.Next(logits));
  }
  EXPECT_EQ(ids, expected);
}

TEST_F(OracleTest, TokenLossesEqualTheReference) {
  double largest = 0;
  for (const Json& sequence : reference_["sequences"].items()) {
    const std::vector<int32_t> ids = Ids(sequence["ids"]);
    const auto model = MakeModel(static_cast<int64_t>(ids.size()) - 1);
    LossOf(*model, ids);
    const std::vector<float> losses = model->TokenLosses().value();
    ASSERT_EQ(losses.size(), sequence["nll"].size());
    for (size_t i = 0; i < losses.size(); ++i) {
      const double expected = sequence["nll"].At(i).AsDouble();
      const double error = std::abs(losses[i] - expected) / std::max(1.0, expected);
      largest = std::max(largest, error);
    }
  }
  std::printf("largest token loss error: %.3g\n", largest);
  EXPECT_LE(largest, kLossTolerance);
}

TEST_F(OracleTest, LossOnTinyStoriesEqualsTheReference) {
  const Json& sample = reference_["tinystories_sample"];
  double sum = 0, tokens = 0, largest = 0;
  for (const Json& story : sample["stories"].items()) {
    const std::vector<int32_t> ids = Ids(story["ids"]);
    const auto targets = static_cast<double>(ids.size() - 1);
    const auto model = MakeModel(static_cast<int64_t>(ids.size()) - 1);
    const double loss = LossOf(*model, ids);
    const double expected = story["mean_nll"].AsDouble();
    largest = std::max(largest, std::abs(loss / targets - expected) / expected);
    sum += loss;
    tokens += targets;
  }
  const double expected = sample["mean_nll_all"].AsDouble();
  std::printf("tinystories loss: %.6f (reference %.6f), largest relative error %.3g\n",
              sum / tokens, expected, largest);
  EXPECT_LE(largest, kLossTolerance);
  EXPECT_NEAR(sum / tokens, expected, kLossTolerance * expected);
}

TEST_F(OracleTest, LossDerivativesEqualTheReference) {
  const Json& reference = reference_["loss_derivatives"];
  const std::vector<int32_t> ids = Ids(reference["sequence"]);
  const std::span<const int32_t> all(ids);
  const size_t targets = ids.size() - 1;
  const auto model = MakeModel(static_cast<int64_t>(targets));
  const auto loss = model->ForwardBackward({}, {all.first(targets), all.last(targets)},
                                           1.0f / static_cast<float>(targets));
  ASSERT_TRUE(loss.ok()) << loss.status().ToString();
  const double mean = *loss / static_cast<double>(targets);
  EXPECT_NEAR(mean, reference["loss"].AsDouble(), kLossTolerance * mean);
  ASSERT_EQ(reference["items"].size(), 47u);
  double largest = 0;
  std::string worst;
  for (const Json& item : reference["items"].items()) {
    const double expected = item["dloss"].AsDouble();
    const double error = std::abs(Derivative(item) - expected) / std::abs(expected);
    EXPECT_LE(error, kDerivativeTolerance) << item.Dump() << " got " << Derivative(item);
    if (error > largest) {
      largest = error;
      worst = item["param"].AsString();
    }
  }
  std::printf("largest relative error of 47 derivatives: %.3g (%s)\n", largest, worst.c_str());
}

}  // namespace
}  // namespace nibble
