// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <utility>

#include "base/files.h"
#include "base/strings.h"
#include "worker/data/tokenize.h"
#include "worker/lab/lab_commands.h"
#include "worker/lab/table1.h"
#include "worker/train/args.h"
#include "worker/train/checkpoint.h"
#include "worker/train/checkpoint_store.h"
#include "worker/train/run_inputs.h"
#include "worker/train/training_run.h"

namespace nibble {
namespace {

constexpr char kHelp[] = R"(usage: nibble-lab table1 [--checkpoint DIR] [--data DIR]

Table 1 of arXiv 2501.17116 (cosine, mean squared error and signal-to-noise ratio of E2M1
activations by treatment of outliers) on the linear inputs of a model trained here.

  --checkpoint DIR  checkpoint or run folder; without it a model of 1 M parameters is trained first
  --data DIR        token folder written by nibble-data tokenize; default: the checkpoint's own, or
                    text/wikitext2-valid.txt of NIBBLE_DATA_DIR under its 1k tokenizer
  --steps N         of that training (default 300)
  --block B         one scale per tok (default) or tensor
  --sequences N     of the measured batch (default 8)
  --threads N       0: one per usable core (default)
  --json            print JSON

example: nibble-lab table1 --checkpoint runs/first --json
)";

constexpr int64_t kMaxSteps = 1'000'000;
constexpr int64_t kMaxSequences = 4096;

// A folder that goes away with the command.
class WorkFolder {
 public:
  ~WorkFolder() {
    if (!path_.empty()) (void)RemoveTree(path_).ok();
  }
  Result<std::string> path() {
    if (path_.empty()) {
      ASSIGN_OR_RETURN(path_, MakeTempDirectory("nibble-table1"));
    }
    return path_;
  }

 private:
  std::string path_;
};

Result<std::string> TokenizeDefaultText(WorkFolder* work) {
  const char* data = std::getenv("NIBBLE_DATA_DIR");
  if (data == nullptr) {
    return InvalidArgumentError("give --data DIR, or set NIBBLE_DATA_DIR to a folder with text/");
  }
  ASSIGN_OR_RETURN(const std::string folder, work->path());
  TokenizeOptions options;
  options.tokenizer = JoinPath(data, "tokenizers/sentencepiece-1k/test_model.model");
  options.inputs = {JoinPath(data, "text/wikitext2-valid.txt")};
  options.out = JoinPath(folder, "tokens");
  options.val_fraction = 0.1;
  options.reader.lossy = true;
  RETURN_IF_ERROR(TokenizeFiles(options).status());
  return options.out;
}

Result<std::string> TrainModel(const std::string& data, int64_t steps, int threads,
                               WorkFolder* work) {
  ASSIGN_OR_RETURN(const std::string folder, work->path());
  RunConfig config;
  config.model.hidden_size = 128;
  config.model.intermediate_size = 352;
  config.model.layers = 4;
  config.model.heads = config.model.kv_heads = 4;
  config.data.path = data;
  config.data.seq_len = 128;
  config.schedule.steps = steps;
  config.optimizer.peak_lr = 2e-3;
  config.recipe = "bf16";
  config.run.dir = JoinPath(folder, "run");
  config.run.threads = threads;
  const EndRecord end = TrainingRun(config, {}).Execute();
  if (end.reason == kEndCompleted) return config.run.dir;
  return FailedPreconditionError("training ended as " + end.reason + ": " + end.message);
}

struct Captured {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Parameters> parameters;
  std::unique_ptr<Model> model;  // after a pass over real text
  int64_t step = 0;
};

// The checkpoint's model under bf16, after one pass over a batch.
Result<Captured> Capture(const std::string& folder, const std::string& data, int64_t sequences,
                         int threads) {
  ASSIGN_OR_RETURN(const TrainingState state, ReadTrainingState(folder));
  ASSIGN_OR_RETURN(const HuggingFaceModel model, ReadModelConfig(folder));
  ASSIGN_OR_RETURN(RunConfig config, RunConfigFromJson(state.spec));
  if (!data.empty()) config.data = DataConfig{data, {}, {}, "", config.data.seq_len};
  config.model = model.model;
  config.run.rank = 0;
  config.run.world_size = 1;
  Captured out;
  out.step = state.step;
  ASSIGN_OR_RETURN(Datasets datasets, OpenDatasets(config));
  TokenDataset& text = datasets.validation ? *datasets.validation : datasets.train;
  const auto tokens = static_cast<size_t>(sequences * config.data.seq_len);
  std::vector<int32_t> inputs(tokens), targets(tokens);
  RETURN_IF_ERROR(text.NextBatch(sequences, inputs, targets));

  ASSIGN_OR_RETURN(out.backend, MakeBackend("cpu", {threads, 0}));
  ASSIGN_OR_RETURN(Parameters parameters,
                   Parameters::Create(out.backend.get(), config.model, false));
  out.parameters = std::make_unique<Parameters>(std::move(parameters));
  RETURN_IF_ERROR(LoadTensors(folder, *out.backend, false, out.parameters.get()));
  ASSIGN_OR_RETURN(const Recipe bf16, FindRecipe("bf16"));
  ASSIGN_OR_RETURN(out.model, Model::Create(out.backend.get(), out.parameters.get(),
                                            {config.model, bf16, sequences, config.data.seq_len}));
  RETURN_IF_ERROR(out.model->Forward({}, {inputs, targets}).status());
  return out;
}

Json Report(const std::vector<Table1Row>& rows, const std::string& folder, int64_t step,
            Block block) {
  Json json = Json::Array();
  for (const Table1Row& row : rows) {
    json.Append(Json::Object({{"treatment", row.treatment},
                              {"layers", row.layers},
                              {"cosine", row.health.cosine},
                              {"mse", row.health.mse},
                              {"snr_db", row.health.snr_db}}));
  }
  Json published = Json::Array();
  for (const OutlierTreatment& row : OutlierTreatments()) {
    published.Append(Json::Object({{"treatment", row.name},
                                   {"cosine", row.published_cosine},
                                   {"mse", row.published_mse},
                                   {"snr_db", row.published_snr_db}}));
  }
  return Json::Object({{"checkpoint", folder},
                       {"step", step},
                       {"block", BlockName(block, 0)},
                       {"rows", std::move(json)},
                       {"published", std::move(published)}});
}

std::string HumanText(const Json& json) {
  std::string text =
      StrFormat("one scale per %s; model after %lld steps\n", json["block"].AsString().c_str(),
                static_cast<long long>(json["step"].AsInt()));
  const auto line = [&](const std::string& layers, const Json& row) {
    text += StrFormat("%-26s %-18s %8.2f %% %12.4g %8.2f dB\n", row["treatment"].AsString().c_str(),
                      layers.c_str(), 100 * row["cosine"].AsDouble(), row["mse"].AsDouble(),
                      row["snr_db"].AsDouble());
  };
  text += StrFormat("%-26s %-18s %10s %12s %11s\n", "TREATMENT", "LAYERS", "COSINE", "MSE", "SNR");
  for (const Json& row : json["rows"].items()) line(row["layers"].AsString(), row);
  for (const Json& row : json["published"].items()) line("published", row);
  return text;
}

Result<Block> ParseBlock(const std::string& text) {
  if (text == "tok") return Block::kToken;
  if (text == "tensor") return Block::kTensor;
  return InvalidArgumentError(UnknownNameMessage("block", text, {"tok", "tensor"}));
}

}  // namespace

Status LabTable1Command(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(
      const Args parsed,
      Args::Parse(args, {{"checkpoint", "data", "steps", "block", "sequences", "threads"},
                         {"json", "help"}}));
  if (parsed.Has("help")) return LabPrint(kHelp);
  ASSIGN_OR_RETURN(const Block block, ParseBlock(parsed.Text("block", "tok")));
  ASSIGN_OR_RETURN(const int64_t steps, parsed.Integer("steps", 300, 1, kMaxSteps));
  ASSIGN_OR_RETURN(const int64_t sequences, parsed.Integer("sequences", 8, 1, kMaxSequences));
  ASSIGN_OR_RETURN(const int64_t threads, parsed.Integer("threads", 0, 0, kMaxThreads));
  WorkFolder work;
  std::string data = parsed.Text("data"), run = parsed.Text("checkpoint");
  if (run.empty()) {
    if (data.empty()) {
      ASSIGN_OR_RETURN(data, TokenizeDefaultText(&work));
    }
    ASSIGN_OR_RETURN(run, TrainModel(data, steps, static_cast<int>(threads), &work));
  }
  ASSIGN_OR_RETURN(const std::string folder, FindCheckpoint(run));
  ASSIGN_OR_RETURN(const Captured captured,
                   Capture(folder, data, sequences, static_cast<int>(threads)));
  ASSIGN_OR_RETURN(const std::vector<Table1Row> rows,
                   MeasureTable1(captured.backend.get(), *captured.model, block));
  const Json report = Report(rows, folder, captured.step, block);
  return LabPrint(parsed.Has("json") ? report.Dump() + "\n" : HumanText(report));
}

}  // namespace nibble
