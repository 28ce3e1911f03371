// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <memory>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "worker/data/tokenizer.h"
#include "worker/train/args.h"
#include "worker/train/checkpoint.h"
#include "worker/train/checkpoint_store.h"
#include "worker/train/commands.h"
#include "worker/train/decoder.h"
#include "worker/train/sampler.h"

namespace nibble {
namespace {

constexpr char kHelp[] = R"(nibble-trainer generate: samples text from a checkpoint

  --checkpoint DIR   checkpoint, or a run folder (its newest checkpoint)
  --prompt TEXT      text to go on from; may be empty
  --tokens N         tokens to generate (default 100)
  --temperature T    0 takes the most likely token each time (default 0.8)
  --top-k K          choose among the K most likely tokens; 0 = all (default 40)
  --seed S           equal seeds give equal text (default 1234)
  --threads N        CPU threads; 0 = all cores (default 0)
  --json             one JSON object: prompt, text, ids, prompt_tokens, tokens, finished, checkpoint

example:
  nibble-trainer generate --checkpoint runs/first --prompt "Once upon a time" --temperature 0
)";

constexpr int64_t kMaxTokens = 1 << 20;

struct GenerateOptions {
  std::string checkpoint;
  std::string prompt;
  int64_t tokens = 100;
  int64_t threads = 0;
  SamplerOptions sampler;
};

struct Generated {
  std::string text;  // without the prompt
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> ids;
  bool finished = false;  // the model ended the document itself
};

Result<GenerateOptions> ReadOptions(const Args& args) {
  GenerateOptions o;
  if (!args.Has("checkpoint")) return InvalidArgumentError("--checkpoint is missing");
  o.checkpoint = args.Text("checkpoint");
  o.prompt = args.Text("prompt");
  ASSIGN_OR_RETURN(o.tokens, args.Integer("tokens", o.tokens, 1, kMaxTokens));
  ASSIGN_OR_RETURN(o.threads, args.Integer("threads", 0, 0, kMaxThreads));
  ASSIGN_OR_RETURN(o.sampler.temperature, args.Real("temperature", 0.8, 0, 1e6));
  ASSIGN_OR_RETURN(o.sampler.top_k, args.Integer("top-k", 40, 0, kMaxTokens));
  ASSIGN_OR_RETURN(const int64_t seed,
                   args.Integer("seed", 1234, 0, std::numeric_limits<int64_t>::max()));
  o.sampler.seed = static_cast<uint64_t>(seed);
  return o;
}

// The ids a document that begins with the prompt has.
Result<std::vector<int32_t>> PromptIds(const Tokenizer& tokenizer, const std::string& prompt) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> text, tokenizer.Encode(prompt));
  const int32_t start = tokenizer.bos_id() != kNoToken ? tokenizer.bos_id() : tokenizer.eos_id();
  std::vector<int32_t> ids;
  if (start != kNoToken) ids.push_back(start);
  ids.insert(ids.end(), text.begin(), text.end());
  if (ids.empty()) {
    return InvalidArgumentError("--prompt is empty and the tokenizer has no start token");
  }
  return ids;
}

Result<Generated> Generate(const std::string& folder, const GenerateOptions& options) {
  ASSIGN_OR_RETURN(const HuggingFaceModel config, ReadModelConfig(folder));
  const Result<std::unique_ptr<Tokenizer>> tokenizer = LoadTokenizer(folder);
  if (!tokenizer.ok()) return tokenizer.status().WithContext("tokenizer of the checkpoint");
  Generated out;
  ASSIGN_OR_RETURN(out.prompt_ids, PromptIds(**tokenizer, options.prompt));
  const auto prompt_tokens = static_cast<int64_t>(out.prompt_ids.size());
  if (prompt_tokens + options.tokens > config.max_positions) {
    return InvalidArgumentError(StrFormat(
        "%lld tokens of prompt and --tokens %lld exceed the %lld positions the model was trained "
        "on; ask for at most %lld",
        static_cast<long long>(prompt_tokens), static_cast<long long>(options.tokens),
        static_cast<long long>(config.max_positions),
        static_cast<long long>(std::max<int64_t>(0, config.max_positions - prompt_tokens))));
  }
  BackendOptions backend_options;
  backend_options.threads = static_cast<int>(options.threads);
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend("cpu", backend_options));
  ASSIGN_OR_RETURN(Parameters parameters, Parameters::Create(backend.get(), config.model, false));
  RETURN_IF_ERROR(LoadTensors(folder, *backend, false, &parameters));
  ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(backend.get(), &parameters, config.model,
                                                    prompt_tokens + options.tokens));
  const auto vocab = static_cast<size_t>(config.model.vocab_size);
  // Ids the tokenizer lacks (a padded vocabulary) must not be drawn.
  const auto drawable = std::min(vocab, static_cast<size_t>((*tokenizer)->vocab_size()));
  Sampler sampler(options.sampler);
  ASSIGN_OR_RETURN(std::vector<float> logits, decoder.Append(out.prompt_ids));
  while (static_cast<int64_t>(out.ids.size()) < options.tokens) {
    const std::span<const float> last(logits.data() + logits.size() - vocab, drawable);
    const int32_t next = sampler.Next(last);
    out.finished = next == (*tokenizer)->eos_id() || next == (*tokenizer)->bos_id();
    if (out.finished) break;
    out.ids.push_back(next);
    ASSIGN_OR_RETURN(logits, decoder.Append({&next, 1}));
  }
  // Decoding prompt and continuation together keeps the white space between them.
  std::vector<int32_t> all = out.prompt_ids;
  all.insert(all.end(), out.ids.begin(), out.ids.end());
  ASSIGN_OR_RETURN(const std::string whole, (*tokenizer)->Decode(all));
  ASSIGN_OR_RETURN(const std::string prefix, (*tokenizer)->Decode(out.prompt_ids));
  out.text = whole.substr(std::min(prefix.size(), whole.size()));
  return out;
}

Json IdArray(const std::vector<int32_t>& ids) {
  Json array = Json::Array();
  for (const int32_t id : ids) array.Append(id);
  return array;
}

}  // namespace

int GenerateCommand(const std::vector<std::string>& args) {
  const Result<Args> parsed = Args::Parse(
      args, {{"checkpoint", "prompt", "tokens", "temperature", "top-k", "seed", "threads"},
             {"json", "help"}});
  if (!parsed.ok()) return UsageError(parsed.status(), "generate ");
  if (parsed->Has("help")) return PrintOut(kHelp);
  const Result<GenerateOptions> options = ReadOptions(*parsed);
  if (!options.ok()) return UsageError(options.status(), "generate ");
  const Result<std::string> folder = FindCheckpoint(options->checkpoint);
  if (!folder.ok()) return Fail(folder.status());
  const Result<Generated> out = Generate(*folder, *options);
  if (!out.ok()) return Fail(out.status());
  if (!parsed->Has("json")) return PrintOut(options->prompt + out->text + "\n");
  const Json json = Json::Object({{"prompt", options->prompt},
                                  {"text", out->text},
                                  {"ids", IdArray(out->ids)},
                                  {"prompt_tokens", static_cast<int64_t>(out->prompt_ids.size())},
                                  {"tokens", static_cast<int64_t>(out->ids.size())},
                                  {"finished", out->finished},
                                  {"checkpoint", *folder}});
  return PrintOut(json.Dump() + "\n");
}

}  // namespace nibble
