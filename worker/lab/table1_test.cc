// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/table1.h"

#include <map>

#include "worker/train/test_support.h"

namespace nibble {
namespace {

Result<std::vector<Table1Row>> Measure(const char* recipe, Block block) {
  const auto backend = TestBackend();
  const ModelConfig config = TinyModel();
  Parameters parameters = Parameters::Create(backend.get(), config).value();
  EXPECT_TRUE(parameters.Initialise(config, 1).ok());
  const auto model =
      Model::Create(backend.get(), &parameters, {config, FindRecipe(recipe).value(), 4, 16})
          .value();
  const std::vector<int32_t> ids = TestTokens(65, 48, 3);
  const std::span<const int32_t> tokens(ids);
  EXPECT_TRUE(model->Forward({}, {tokens.first(64), tokens.last(64)}).ok());
  return MeasureTable1(backend.get(), *model, block);
}

TEST(Table1, CompensationAndLowerQuantilesAreMoreExact) {
  for (const Block block : {Block::kToken, Block::kTensor}) {
    const auto rows = Measure("bf16", block);
    ASSERT_TRUE(rows.ok()) << rows.status().ToString();
    ASSERT_EQ(rows->size(), OutlierTreatments().size() * 5);
    std::map<std::string, HealthRecord> all;
    for (const Table1Row& row : *rows) {
      if (row.layers == "all") all[row.treatment] = row.health;
    }
    EXPECT_GT(all["clamp .99, compensated"].snr_db, all["clamp .999, compensated"].snr_db);
    EXPECT_GT(all["clamp .97, compensated"].snr_db, all["clamp .99, compensated"].snr_db);
    EXPECT_GT(all["clamp .97, compensated"].cosine, all["direct"].cosine);
    EXPECT_LT(all["clamp .97, compensated"].mse, all["direct"].mse);
    EXPECT_GE(all["clamp .999, compensated"].snr_db, all["clamp .999"].snr_db);
  }
}

TEST(Table1, ModelsThatDropTheirInputsAreRefused) {
  const auto rows = Measure("fp4_direct", Block::kToken);
  EXPECT_EQ(rows.status().code(), StatusCode::kFailedPrecondition) << rows.status().ToString();
}

}  // namespace
}  // namespace nibble
