// SPDX-License-Identifier: Apache-2.0
#include "worker/train/run_inputs.h"

#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "worker/data/tokenizer.h"

namespace nibble {
namespace {

constexpr char kIndexFileName[] = "index.json";
constexpr int64_t kMaxIndexBytes = 16 << 20;

// What data.path/index.json tells about the tokenizer; null without such a file.
Result<Json> IndexedTokenizer(const DataConfig& data) {
  const std::string path = JoinPath(data.path, kIndexFileName);
  if (data.path.empty() || !PathExists(path)) return Json();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxIndexBytes));
  const Result<Json> index = Json::Parse(text);
  if (!index.ok()) return DataLossError(path + ": " + index.status().message());
  return (*index)["tokenizer"];
}

// Path of the tokenizer; "" when the run has none. An index without a file name means the files
// beside it, if there are any.
Result<std::string> TokenizerPath(const DataConfig& data, const Json& indexed) {
  if (!data.tokenizer.empty()) return data.tokenizer;
  if (data.path.empty()) return std::string();
  const std::string& file = indexed["file"].AsString();
  if (!file.empty()) return file.front() == '/' ? file : JoinPath(data.path, file);
  const Status found = TokenizerFiles(data.path).status();
  if (found.ok()) return data.path;
  if (found.code() == StatusCode::kNotFound) return std::string();
  return found;
}

// Shards made with another tokenizer would be read as other words.
Status CheckTokenizerHash(const std::string& path, const Json& indexed) {
  const std::string& expected = indexed["sha256"].AsString();
  if (expected.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const std::string hash, TokenizerHash(path));
  if (hash == expected) return OkStatus();
  return FailedPreconditionError(path + " has hash " + hash + ", but " + kIndexFileName +
                                 " says the shards were made with a tokenizer of hash " + expected +
                                 "; name that one, or make the shards again");
}

// Files, folders and patterns of one split; the default is `<split>-*.bin` below data.path.
Result<std::vector<std::string>> SplitShards(const DataConfig& data,
                                             const std::vector<std::string>& given,
                                             const std::string& split) {
  if (!given.empty()) return ResolveShards(given, split);
  return ResolveShards({data.path}, split);
}

}  // namespace

Result<Recipe> RecipeOfConfig(const RunConfig& config) {
  if (!config.recipe_json.empty()) return ParseRecipeText(config.recipe_json);
  return FindRecipe(config.recipe);
}

Result<TokenizerInputs> FindTokenizer(const DataConfig& data) {
  TokenizerInputs inputs;
  ASSIGN_OR_RETURN(const Json indexed, IndexedTokenizer(data));
  ASSIGN_OR_RETURN(const std::string path, TokenizerPath(data, indexed));
  if (path.empty()) {
    inputs.vocab_size = static_cast<int32_t>(indexed["vocab_size"].AsInt());
    return inputs;
  }
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(path));
  RETURN_IF_ERROR(CheckTokenizerHash(path, indexed));
  ASSIGN_OR_RETURN(inputs.files, TokenizerFiles(path));
  inputs.vocab_size = tokenizer->vocab_size();
  inputs.bos_id = tokenizer->bos_id();
  inputs.eos_id = tokenizer->eos_id();
  return inputs;
}

Status ResolveVocabSize(const TokenizerInputs& tokenizer, ModelConfig* model) {
  if (model->vocab_size == 0) model->vocab_size = tokenizer.vocab_size;
  if (model->vocab_size == 0) {
    return InvalidArgumentError(
        "model.vocabSize is 0 and there is no tokenizer to take it from; give model.vocabSize or "
        "data.tokenizer");
  }
  if (model->vocab_size < tokenizer.vocab_size) {
    return InvalidArgumentError(
        StrFormat("model.vocabSize is %lld, the tokenizer has %d ids; leave model.vocabSize out to "
                  "take the tokenizer's",
                  static_cast<long long>(model->vocab_size), tokenizer.vocab_size));
  }
  return OkStatus();
}

Result<Datasets> OpenDatasets(const RunConfig& config) {
  TokenDataset::Options options;
  options.seq_len = config.data.seq_len;
  options.vocab_size = config.model.vocab_size;
  options.seed = config.seed;
  options.rank = static_cast<int>(config.run.rank);
  options.world_size = static_cast<int>(config.run.world_size);
  ASSIGN_OR_RETURN(options.shards, SplitShards(config.data, config.data.train, "train"));
  ASSIGN_OR_RETURN(TokenDataset train, TokenDataset::Open(options));
  Datasets datasets{std::move(train), std::nullopt};

  Result<std::vector<std::string>> shards =
      config.data.path.empty() && config.data.validation.empty()
          ? Result<std::vector<std::string>>(std::vector<std::string>())
          : SplitShards(config.data, config.data.validation, "val");
  const bool absent = !shards.ok() && shards.status().code() == StatusCode::kNotFound &&
                      config.data.validation.empty();
  if (absent) return datasets;
  RETURN_IF_ERROR(shards.status());
  if (shards->empty()) return datasets;
  options.shards = *std::move(shards);
  options.order = DataOrder::kSequential;
  ASSIGN_OR_RETURN(datasets.validation, TokenDataset::Open(options));
  return datasets;
}

}  // namespace nibble
