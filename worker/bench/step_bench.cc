// SPDX-License-Identifier: Apache-2.0
//
// step: whole optimizer steps of the trainer by model, recipe and thread count, with the share of
// time by operation, against our own fp32 and PyTorch.
#include <algorithm>
#include <map>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/strings.h"
#include "worker/bench/bench.h"
#include "worker/bench/machine.h"
#include "worker/bench/timed_backend.h"
#include "worker/bench/torch_peer.h"
#include "worker/data/token_dataset.h"
#include "worker/spec/estimate.h"
#include "worker/train/communicator.h"
#include "worker/train/model.h"
#include "worker/train/training_step.h"

namespace nibble::bench {
namespace {

struct ModelCase {
  const char* name;
  int64_t vocab, hidden, ffn, layers, heads, batch, seq;
  bool usual;  // part of a default run
  bool torch;  // compared with PyTorch
};
// llama2-60m as the preset has it. d384-*: six layers, the models that are compared with PyTorch.
constexpr ModelCase kModels[] = {
    {"d384-v4096", 4096, 384, 1024, 6, 6, 8, 256, true, true},
    {"llama2-60m", 32000, 512, 1376, 8, 8, 2, 512, true, false},
    {"d384-v32000", 32000, 384, 1024, 6, 6, 8, 256, false, true},
    {"tiny", 64, 32, 48, 2, 2, 2, 16, false, false},
};
const char* const kRecipes[] = {"fp32", "fp4_ms_paper", "fp4_fold4", "fp4_foldi8"};
// Beside PyTorch: the recipes that have a goal there, so that a default run stays short.
const char* const kRecipesBesideTorch[] = {"fp32", "fp4_fold4"};
// Recipes that also run on one thread, for the gain of the second; the first one by default.
const char* const kScaled[] = {"fp4_fold4", "fp32"};

Result<ModelCase> FindModel(const std::string& name) {
  std::vector<std::string> names;
  for (const ModelCase& model : kModels) {
    if (model.name == name) return model;
    names.emplace_back(model.name);
  }
  return InvalidArgumentError(UnknownNameMessage("model", name, names));
}

ModelConfig ConfigOf(const ModelCase& c) {
  ModelConfig model;
  model.vocab_size = c.vocab;
  model.hidden_size = c.hidden;
  model.intermediate_size = c.ffn;
  model.layers = c.layers;
  model.heads = model.kv_heads = c.heads;
  return model;
}

RunConfig RunOf(const ModelCase& c) {
  RunConfig config;
  config.model = ConfigOf(c);
  config.data.seq_len = c.seq;
  config.schedule.steps = 1000000;  // the learning rate stays in its warm-up, near 0
  config.schedule.micro_batch = config.schedule.global_batch = c.batch;
  return config;
}

// A folder with one shard of random tokens, removed with this.
class RandomData {
 public:
  RandomData() = default;
  ~RandomData() {
    if (!folder_.empty()) (void)RemoveTree(folder_).ok();
  }
  RandomData(const RandomData&) = delete;
  RandomData& operator=(const RandomData&) = delete;

  Status Write(const ModelCase& c) {
    ASSIGN_OR_RETURN(folder_, MakeTempDirectory("nibble-bench"));
    TokenShardWriter::Options options;
    options.folder = folder_;
    options.prefix = "train";
    options.vocab_size = c.vocab;
    ASSIGN_OR_RETURN(TokenShardWriter writer, TokenShardWriter::Create(options));
    std::vector<int32_t> tokens(static_cast<size_t>(16 * c.batch * c.seq + 1));
    uint32_t state = 1;
    for (int32_t& token : tokens) {
      state = state * 1664525u + 1013904223u;
      token = static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(c.vocab));
    }
    RETURN_IF_ERROR(writer.Append(tokens));
    return writer.Finish().status();
  }
  Result<TokenDataset> Open(const ModelCase& c) const {
    TokenDataset::Options options;
    ASSIGN_OR_RETURN(options.shards, ResolveShards({folder_}));
    options.seq_len = c.seq;
    options.vocab_size = c.vocab;
    return TokenDataset::Open(std::move(options));
  }

 private:
  std::string folder_;
};

// One thread count and its backend.
struct Engine {
  int threads = 1;
  std::unique_ptr<Backend> cpu;
  std::unique_ptr<TimedBackend> backend;
  std::unique_ptr<Communicator> communicator;
};

// What the name of a runner that samples quantization health ends with.
constexpr char kSampled[] = "+health";

struct Runner {
  std::string name;  // the recipe's, or with kSampled
  bool sample_health = false;
  Engine* engine = nullptr;
  RunConfig config;
  std::unique_ptr<Model> model;
  std::unique_ptr<TrainingStep> step;
  std::unique_ptr<TokenDataset> data;
  ClockKind clock = ClockKind::kWall;
  int64_t number = 0;
  double total_seconds = 0;
  std::map<std::string, double> seconds_by_op;
  std::vector<std::string> op_order;

  Result<Sample> Run() {
    engine->backend->Reset();
    model->WeightsChanged();  // other recipes have stepped on the same weights
    const double cpu_start = NowSeconds(ClockKind::kProcessCpu);
    const double start = NowSeconds(clock);
    ASSIGN_OR_RETURN(const StepOutcome outcome, step->Run(++number, sample_health, data.get()));
    const double seconds = NowSeconds(clock) - start;
    const double cpu_seconds = NowSeconds(ClockKind::kProcessCpu) - cpu_start;
    if (!outcome.end_reason.empty()) return InternalError(outcome.end_message);
    if (number == 1) return Sample{seconds, cpu_seconds};  // warm-up
    total_seconds += seconds;
    for (const auto& [op, spent] : engine->backend->seconds()) {
      if (seconds_by_op.count(op) == 0) op_order.push_back(op);
      seconds_by_op[op] += spent;
    }
    return Sample{seconds, cpu_seconds};
  }
};

class StepGroup {
 public:
  StepGroup(const Options& options, const ModelCase& model, Report* report)
      : options_(options), case_(model), report_(*report) {
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    threads_ = options.threads > 0 ? options.threads : static_cast<int>(std::min(cores, 2u));
    // One clock for all, or one thread could not be compared with two.
    clock_ = ClockFor(threads_);
  }

  Status Measure(const Effort& effort) {
    RETURN_IF_ERROR(data_.Write(case_));
    RETURN_IF_ERROR(AddRunners());
    std::vector<Contestant> contestants;
    for (const std::unique_ptr<Runner>& runner : runners_) {
      contestants.push_back({runner->name, [one = runner.get()] { return one->Run(); }});
    }
    std::unique_ptr<TorchPeer> torch;
    if (options_.with_peers && case_.torch && !options_.quick) {
      Result<std::unique_ptr<TorchPeer>> started =
          TorchPeer::Start(ConfigOf(case_), case_.batch, case_.seq, threads_);
      if (started.ok()) {
        torch = std::move(started).value();
        contestants.push_back({"pytorch", [&torch] { return torch->Step(); }});
      } else {
        report_.Skip("pytorch", started.status().message());
      }
    }
    RETURN_IF_ERROR(RunInterleaved(effort, contestants).WithContext(case_.name));
    AddRows(contestants, torch.get());
    return OkStatus();
  }

 private:
  Status AddRunners() {
    std::vector<std::string> names = options_.recipes;
    if (names.empty() && case_.torch) {
      names.assign(std::begin(kRecipesBesideTorch), std::end(kRecipesBesideTorch));
    }
    if (names.empty()) names.assign(std::begin(kRecipes), std::end(kRecipes));
    if (options_.all && options_.recipes.empty()) names = BuiltInRecipeNames();
    ASSIGN_OR_RETURN(Engine * all, AddEngine(threads_));
    for (const std::string& name : names) {
      RETURN_IF_ERROR(AddRunner(name, all, false));
      if (options_.health) RETURN_IF_ERROR(AddRunner(name, all, true));
    }
    const bool fixed = options_.threads > 0 || options_.quick || options_.health;
    if (fixed || threads_ == 1) return OkStatus();
    ASSIGN_OR_RETURN(Engine * one, AddEngine(1));
    for (const char* name : kScaled) {
      // The gain of the second thread is shown once in a default run, on the larger model.
      const bool wanted = options_.recipes.empty()
                              ? options_.all || (name == kScaled[0] && !case_.torch)
                              : std::count(names.begin(), names.end(), name);
      if (wanted) RETURN_IF_ERROR(AddRunner(name, one, false));
    }
    return OkStatus();
  }

  Result<Engine*> AddEngine(int threads) {
    auto engine = std::make_unique<Engine>();
    engine->threads = threads;
    ASSIGN_OR_RETURN(engine->cpu, CpuWithThreads(threads));
    engine->backend = std::make_unique<TimedBackend>(engine->cpu.get(), clock_, case_.vocab);
    ASSIGN_OR_RETURN(engine->communicator, MakeCommunicator("single", engine->backend.get(), 0, 1));
    engines_.push_back(std::move(engine));
    return engines_.back().get();
  }

  Status AddRunner(const std::string& name, Engine* engine, bool sample_health) {
    const Result<Recipe> recipe = FindRecipe(name);
    if (!recipe.ok() && !options_.recipes.empty()) return recipe.status();
    if (!recipe.ok()) {
      report_.Skip(name, "not a recipe of this build");
      return OkStatus();
    }
    auto runner = std::make_unique<Runner>();
    runner->name = name + (sample_health ? kSampled : "");
    runner->sample_health = sample_health;
    runner->engine = engine;
    runner->clock = clock_;
    runner->config = RunOf(case_);
    ASSIGN_OR_RETURN(Parameters* const parameters, ParametersFor(recipe->state));
    ASSIGN_OR_RETURN(runner->model,
                     Model::Create(engine->backend.get(), parameters,
                                   {ConfigOf(case_), *recipe, case_.batch, case_.seq}));
    runner->step =
        std::make_unique<TrainingStep>(runner->config, engine->backend.get(),
                                       engine->communicator.get(), parameters, runner->model.get());
    ASSIGN_OR_RETURN(TokenDataset data, data_.Open(case_));
    runner->data = std::make_unique<TokenDataset>(std::move(data));
    runners_.push_back(std::move(runner));
    return OkStatus();
  }

  // Weights and moments in the precision of a recipe. The first engine holds them and all engines
  // step on them: one address space, one caller.
  Result<Parameters*> ParametersFor(const StatePrecision& precision) {
    for (const std::unique_ptr<Parameters>& made : parameters_) {
      if (made->precision() == precision) return made.get();
    }
    ASSIGN_OR_RETURN(Parameters made, Parameters::Create(engines_.front()->backend.get(),
                                                         ConfigOf(case_), true, precision));
    RETURN_IF_ERROR(made.Initialise(ConfigOf(case_), 1));
    parameters_.push_back(std::make_unique<Parameters>(std::move(made)));
    return parameters_.back().get();
  }

  const Contestant* Find(const std::vector<Contestant>& contestants, const std::string& name,
                         int threads) const {
    for (size_t i = 0; i < contestants.size(); ++i) {
      const int used = i < runners_.size() ? runners_[i]->engine->threads : threads_;
      if (contestants[i].name == name && used == threads) return &contestants[i];
    }
    return nullptr;
  }

  void AddRows(const std::vector<Contestant>& contestants, const TorchPeer* torch) {
    std::map<int, double> peaks;
    for (const std::unique_ptr<Engine>& engine : engines_) {
      peaks[engine->threads] = MeasureFp32PeakGflops(engine->threads, options_.isa == "avx2");
    }
    const RunConfig config = RunOf(case_);
    const Result<RunEstimate> estimate = EstimateRun(config, FindRecipe("fp32").value());
    const double tokens = static_cast<double>(config.tokens_per_step());
    for (size_t i = 0; i < contestants.size(); ++i) {
      const Contestant& contestant = contestants[i];
      const Runner* runner = i < runners_.size() ? runners_[i].get() : nullptr;
      const int threads = runner != nullptr ? runner->engine->threads : threads_;
      Json row = Row(contestant.name,
                     Json::Object({{"model", case_.name},
                                   {"batch", case_.batch},
                                   {"seq", case_.seq},
                                   {"vocab", case_.vocab}}),
                     threads, contestant.seconds);
      row.Set("clock", ClockName(clock_));
      row.Set("cpu_ms", ToJson(Summarise(contestant.cpu_seconds), 1e3));
      const double median = Summarise(contestant.seconds).median;
      row.Set("tokens_per_s", Significant(tokens / median));
      if (estimate.ok()) {
        const double gflops = estimate->flops_per_token * tokens / median * 1e-9;
        row.Set("gflops", Significant(gflops));
        row.Set("share_of_fp32_peak", Significant(gflops / peaks[threads], 3));
      }
      if (const auto* base = Find(contestants, "fp32", threads)) {
        AddRatio("ratio_vs_fp32", base->seconds, contestant.seconds, &row);
        AddRatio("cpu_ratio_vs_fp32", base->cpu_seconds, contestant.cpu_seconds, &row);
      }
      if (const auto* base = Find(contestants, "pytorch", threads)) {
        AddRatio("ratio_vs_pytorch", base->seconds, contestant.seconds, &row);
        AddRatio("cpu_ratio_vs_pytorch", base->cpu_seconds, contestant.cpu_seconds, &row);
      }
      if (const auto* base = Find(contestants, contestant.name, 1); base && threads > 1) {
        AddRatio("ratio_vs_one_thread", base->seconds, contestant.seconds, &row);
      }
      if (runner != nullptr && runner->sample_health) AddHealthShare(contestants, *runner, &row);
      if (runner != nullptr) AddShares(*runner, &row);
      if (runner == nullptr && torch != nullptr) row.Set("version", torch->version());
      report_.Add(std::move(row));
    }
  }

  // What sampling adds to a step, and to the average step at the default interval.
  void AddHealthShare(const std::vector<Contestant>& contestants, const Runner& runner,
                      Json* row) const {
    const std::string plain = runner.name.substr(0, runner.name.size() - (sizeof kSampled - 1));
    const Contestant* const base = Find(contestants, plain, runner.engine->threads);
    const Contestant* const sampled = Find(contestants, runner.name, runner.engine->threads);
    if (base == nullptr || sampled == nullptr) return;
    const double added = SummariseRatios(sampled->cpu_seconds, base->cpu_seconds).median - 1;
    row->Set("health_share_sampled", Significant(added, 3));
    const auto interval = static_cast<double>(MetricsConfig{}.health_every);
    row->Set("health_share_at_default", Significant(added / interval, 3));
  }

  // Operation by operation, and "other": what the step does between backend calls.
  static void AddShares(const Runner& runner, Json* row) {
    if (runner.total_seconds <= 0) return;
    Json shares = Json::Object();
    double other = 1;
    for (const std::string& op : runner.op_order) {
      const double share = runner.seconds_by_op.at(op) / runner.total_seconds;
      shares.Set(op, Significant(share, 3));
      other -= share;
    }
    shares.Set("other", Significant(std::max(0.0, other), 3));
    row->Set("share_by_op", std::move(shares));
  }

  const Options& options_;
  const ModelCase& case_;
  Report& report_;
  int threads_ = 1;
  ClockKind clock_ = ClockKind::kWall;
  RandomData data_;
  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<std::unique_ptr<Parameters>> parameters_;  // destroyed before the engines
  std::vector<std::unique_ptr<Runner>> runners_;         // destroyed before both
};

}  // namespace

Status StepBench(const Options& options, Report* report) {
  std::vector<ModelCase> models;
  if (!options.shapes.empty()) return InvalidArgumentError("step takes --models, no --shapes");
  for (const std::string& name : options.models) {
    ASSIGN_OR_RETURN(const ModelCase model, FindModel(name));
    models.push_back(model);
  }
  if (models.empty() && options.quick) models = {FindModel("tiny").value()};
  for (const ModelCase& model : kModels) {
    if (!models.empty() && (options.quick || !options.models.empty())) break;
    if (model.usual || (options.all && std::string(model.name) != "tiny")) models.push_back(model);
  }
  const double start = NowSeconds(ClockKind::kWall);
  for (size_t i = 0; i < models.size(); ++i) {
    const double left = options.seconds - (NowSeconds(ClockKind::kWall) - start);
    const double share = left / static_cast<double>(models.size() - i);
    const Effort effort{0.85 * share, 2, options.quick ? 2 : 40};
    StepGroup group(options, models[i], report);
    RETURN_IF_ERROR(group.Measure(effort));
  }
  return OkStatus();
}

}  // namespace nibble::bench
