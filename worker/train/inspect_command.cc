// SPDX-License-Identifier: Apache-2.0
#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "worker/spec/estimate.h"
#include "worker/train/args.h"
#include "worker/train/checkpoint.h"
#include "worker/train/checkpoint_store.h"
#include "worker/train/commands.h"
#include "worker/train/run_inputs.h"
#include "worker/train/safetensors.h"

namespace nibble {
namespace {

constexpr char kInspectHelp[] =
    R"(nibble-trainer inspect: verifies a checkpoint and prints what it holds

  --checkpoint DIR   checkpoint, or a run folder (its newest checkpoint)
  --json             one JSON object

exit codes: 0 intact, 1 damaged or not found, 2 wrong usage

example:
  nibble-trainer inspect --checkpoint runs/first/checkpoints/step-00000100
)";

constexpr char kEstimateHelp[] = R"(nibble-trainer estimate: what a run will cost, before it runs

  --config FILE   run config (JSON)
  --json          one JSON object: parameters, flops_per_token, tokens_per_step, steps,
                  memory_bytes{weights, gradients, optimizer, activations, quantized, host, total}

example:
  nibble-trainer estimate --config run.json --json
)";

Result<Json> Inspect(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<ManifestEntry> files, VerifyCheckpoint(folder));
  ASSIGN_OR_RETURN(const TrainingState state, ReadTrainingState(folder));
  ASSIGN_OR_RETURN(const HuggingFaceModel model, ReadModelConfig(folder));
  ASSIGN_OR_RETURN(const SafetensorsReader weights,
                   SafetensorsReader::Open(JoinPath(folder, kWeightsFileName)));
  Json json_files = Json::Array();
  for (const ManifestEntry& file : files) {
    json_files.Append(Json::Object(
        {{"name", file.name}, {"bytes", file.digest.size_bytes}, {"sha256", file.digest.sha256}}));
  }
  Json json_state = state.ToJson();
  return Json::Object({{"checkpoint", folder},
                       {"intact", true},
                       {"step", state.step},
                       {"tokens", state.tokens},
                       {"recipe", state.recipe},
                       {"seed", static_cast<int64_t>(state.seed)},
                       {"train_loss", state.train_loss},
                       {"validation_loss", json_state["validation_loss"]},
                       {"weights_sha256", state.weights_sha256},
                       {"parameters", CountParameters(model.model)},
                       {"tensors", static_cast<int64_t>(weights.entries().size())},
                       {"files", std::move(json_files)}});
}

Result<Json> Estimate(const std::string& path) {
  ASSIGN_OR_RETURN(RunConfig config, LoadRunConfig(path));
  ASSIGN_OR_RETURN(const Recipe recipe, RecipeOfConfig(config));
  if (config.model.vocab_size == 0) {
    ASSIGN_OR_RETURN(const TokenizerInputs tokenizer, FindTokenizer(config.data));
    RETURN_IF_ERROR(ResolveVocabSize(tokenizer, &config.model));
  }
  ASSIGN_OR_RETURN(const RunEstimate e, EstimateRun(config, recipe));
  return Json::Object({{"parameters", e.parameters},
                       {"flops_per_token", e.flops_per_token},
                       {"tokens_per_step", e.tokens_per_step},
                       {"steps", e.steps},
                       {"recipe", recipe.name},
                       {"memory_bytes", Json::Object({{"weights", e.memory.weights},
                                                      {"gradients", e.memory.gradients},
                                                      {"optimizer", e.memory.optimizer},
                                                      {"activations", e.memory.activations},
                                                      {"quantized", e.memory.quantized},
                                                      {"host", e.memory.host},
                                                      {"total", e.memory.total()}})}});
}

// One "key  value" line per member; lists and objects indented below.
std::string HumanText(const Json& json, const std::string& indent = "") {
  std::string text;
  for (const auto& [key, value] : json.members()) {
    if (value.is_object()) {
      text += indent + key + "\n" + HumanText(value, indent + "  ");
    } else if (value.is_array()) {
      text += indent + key + "\n";
      for (const Json& item : value.items()) {
        text += indent + "  " + item["name"].AsString() + "  " +
                FormatBytes(item["bytes"].AsDouble()) + "\n";
      }
    } else {
      const std::string shown = value.is_string() ? value.AsString() : value.Dump();
      text += indent + StrFormat("%-18s", key.c_str()) + shown + "\n";
    }
  }
  return text;
}

int PrintResult(const Json& json, bool as_json) {
  return PrintOut(as_json ? json.Dump() + "\n" : HumanText(json));
}

}  // namespace

int InspectCommand(const std::vector<std::string>& args) {
  const Result<Args> parsed = Args::Parse(args, {{"checkpoint"}, {"json", "help"}});
  if (!parsed.ok()) return UsageError(parsed.status(), "inspect ");
  if (parsed->Has("help")) return PrintOut(kInspectHelp);
  if (!parsed->Has("checkpoint")) {
    return UsageError(InvalidArgumentError("--checkpoint is missing"), "inspect ");
  }
  const Result<std::string> folder = FindCheckpoint(parsed->Text("checkpoint"));
  if (!folder.ok()) return Fail(folder.status());
  const Result<Json> json = Inspect(*folder);
  if (!json.ok()) return Fail(json.status());
  return PrintResult(*json, parsed->Has("json"));
}

int EstimateCommand(const std::vector<std::string>& args) {
  const Result<Args> parsed = Args::Parse(args, {{"config"}, {"json", "help"}});
  if (!parsed.ok()) return UsageError(parsed.status(), "estimate ");
  if (parsed->Has("help")) return PrintOut(kEstimateHelp);
  if (!parsed->Has("config")) {
    return UsageError(InvalidArgumentError("--config is missing"), "estimate ");
  }
  const Result<Json> json = Estimate(parsed->Text("config"));
  if (!json.ok()) {
    const bool bad_spec = json.status().code() == StatusCode::kInvalidArgument;
    return Fail(json.status(), bad_spec ? kExitUsage : kExitFailed);
  }
  return PrintResult(*json, parsed->Has("json"));
}

}  // namespace nibble
