// SPDX-License-Identifier: Apache-2.0
//
// RunInputs: what a run config names, found and opened: recipe, tokenizer, token shards.
// Thread-safety: free functions; the result is thread-compatible. Ownership: owns its datasets.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/recipe/recipe.h"
#include "worker/data/token_dataset.h"
#include "worker/spec/run_config.h"

namespace nibble {

// The recipe a config names or contains. Errors as FindRecipe and ParseRecipeText.
Result<Recipe> RecipeOfConfig(const RunConfig& config);

struct TokenizerInputs {
  std::vector<std::string> files;  // empty: the run has no tokenizer
  int32_t vocab_size = 0;          // also known without files when index.json tells
  int32_t bos_id = -1;
  int32_t eos_id = -1;
};

// The tokenizer of data.tokenizer, else the file data.path/index.json names (tokenizer.file), else
// tokenizer files lying in data.path, else none.
// NOT_FOUND or DATA_LOSS naming the file; FAILED_PRECONDITION when index.json says that the shards
// were made with another one.
Result<TokenizerInputs> FindTokenizer(const DataConfig& data);

// Sets model.vocab_size when it is 0. INVALID_ARGUMENT when neither config nor tokenizer tells, or
// the tokenizer has ids the model lacks.
Status ResolveVocabSize(const TokenizerInputs& tokenizer, ModelConfig* model);

struct Datasets {
  TokenDataset train;
  std::optional<TokenDataset> validation;  // none when the config names no file and there is none
};

// Opens the shards. Errors name the file; `config.model.vocab_size` must be resolved.
Result<Datasets> OpenDatasets(const RunConfig& config);

}  // namespace nibble
