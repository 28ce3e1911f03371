// SPDX-License-Identifier: Apache-2.0
#include "worker/bench/device_step_bench.h"

#include <thread>
#include <utility>

#include "worker/bench/measure.h"
#include "worker/bench/timed_backend.h"
#include "worker/spec/estimate.h"
#include "worker/train/communicator.h"
#include "worker/train/memory_report.h"
#include "worker/train/model.h"
#include "worker/train/run_inputs.h"
#include "worker/train/training_step.h"

namespace nibble::bench {
namespace {

constexpr int kWarmSteps = 4;  // two of warm-up, one recorded, one replayed
constexpr int kMinSteps = 3, kMaxSteps = 40;
constexpr int kSharedSteps = 2;

// Every operation has ended before the next begins; steps are not gathered.
class SerialBackend final : public TimedBackend {
 public:
  explicit SerialBackend(Backend* inner) : TimedBackend(inner, ClockKind::kWall), inner_(*inner) {}
  Status BeginStep() override { return OkStatus(); }
  Status EndStep() override { return OkStatus(); }

 protected:
  void Leave() override { (void)inner_.Synchronize().ok(); }

 private:
  Backend& inner_;
};

// Everything one case trains with.
struct Rig {
  RunConfig config;
  std::unique_ptr<Backend> device;
  std::unique_ptr<SerialBackend> serial;
  std::unique_ptr<Communicator> communicator;
  std::optional<Parameters> parameters;
  std::unique_ptr<Model> model;
  std::unique_ptr<TrainingStep> step;
  std::optional<TokenDataset> data;
  int64_t number = 0;

  Status Open(const std::string& backend, const Recipe& recipe, bool shares) {
    ASSIGN_OR_RETURN(const RunEstimate estimate, EstimateRun(config, recipe));
    BackendOptions options;
    if (backend != kBackendCpu) options.arena_bytes = estimate.memory.total();
    ASSIGN_OR_RETURN(device, MakeBackend(backend, options));
    Backend* used = device.get();
    if (shares) {
      serial = std::make_unique<SerialBackend>(used);
      used = serial.get();
    }
    ASSIGN_OR_RETURN(communicator, MakeCommunicator(kCommunicatorSingle, used, 0, 1));
    ASSIGN_OR_RETURN(Parameters made, Parameters::Create(used, config.model, true, recipe.state));
    parameters.emplace(std::move(made));
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    RETURN_IF_ERROR(parameters->Initialise(config.model, config.seed, static_cast<int>(cores)));
    ASSIGN_OR_RETURN(model, Model::Create(used, &*parameters,
                                          {config.model, recipe, config.schedule.micro_batch,
                                           config.data.seq_len, config.memory.recompute,
                                           config.memory.activations}));
    step =
        std::make_unique<TrainingStep>(config, used, communicator.get(), &*parameters, model.get());
    ASSIGN_OR_RETURN(Datasets opened, OpenDatasets(config));
    data.emplace(std::move(opened.train));
    return OkStatus();
  }

  // Seconds of one step.
  Result<double> Step() {
    const double start = NowSeconds(ClockKind::kWall);
    ASSIGN_OR_RETURN(const StepOutcome outcome, step->Run(++number, false, &*data));
    RETURN_IF_ERROR(device->Synchronize());
    if (!outcome.end_reason.empty()) return InternalError(outcome.end_message);
    return NowSeconds(ClockKind::kWall) - start;
  }
};

Status MeasureTime(Rig& rig, double limit, const Recipe& recipe, Json* row) {
  for (int i = 0; i < kWarmSteps; ++i) RETURN_IF_ERROR(rig.Step().status());
  std::vector<double> seconds;
  double total = 0;
  while (seconds.size() < kMinSteps || (seconds.size() < kMaxSteps && total < limit)) {
    ASSIGN_OR_RETURN(const double one, rig.Step());
    seconds.push_back(one);
    total += one;
  }
  const Summary summary = Summarise(seconds);
  row->Set("ms", ToJson(summary, 1e3));
  row->Set("tokens_per_s",
           Significant(static_cast<double>(rig.config.tokens_per_step()) / summary.median));
  Json memory = Json::Object();
  for (const auto& [name, bytes] : MemoryRecordOf(*rig.device, *rig.model, *rig.parameters).bytes) {
    memory.Set(name, bytes);
  }
  row->Set("memory", std::move(memory));
  row->Set("peak_bytes", rig.device->peak_allocated_bytes());
  ASSIGN_OR_RETURN(const RunEstimate estimate, EstimateRun(rig.config, recipe));
  row->Set("estimated_bytes", estimate.memory.total());
  return OkStatus();
}

Status MeasureShares(Rig& rig, Json* row) {
  RETURN_IF_ERROR(rig.Step().status());
  rig.serial->Reset();
  double total = 0;
  for (int i = 0; i < kSharedSteps; ++i) {
    ASSIGN_OR_RETURN(const double one, rig.Step());
    total += one;
  }
  Json shares = Json::Object(), times = Json::Object();
  for (const auto& [operation, seconds] : rig.serial->seconds()) {
    shares.Set(operation, Significant(seconds / total, 3));
    times.Set(operation, Significant(1e3 * seconds / kSharedSteps));
  }
  row->Set("share_by_op", std::move(shares));
  row->Set("op_ms", std::move(times));
  return OkStatus();
}

Status MeasureCase(const std::string& backend, const StepCases& cases, const RunConfig& config,
                   const Recipe& recipe, Json* row) {
  {
    Rig rig;
    rig.config = config;
    RETURN_IF_ERROR(rig.Open(backend, recipe, false));
    RETURN_IF_ERROR(MeasureTime(rig, cases.seconds, recipe, row));
  }
  if (!cases.shares) return OkStatus();
  Rig rig;
  rig.config = config;
  RETURN_IF_ERROR(rig.Open(backend, recipe, true));
  return MeasureShares(rig, row);
}

}  // namespace

Status MeasureSteps(const std::string& backend, const StepCases& cases,
                    const std::function<void(const Json&)>& emit) {
  RunConfig config = cases.config;
  config.schedule.steps = 1000000;  // the learning rate stays in its warm-up, near 0
  const std::vector<std::string> recipes =
      cases.recipes.empty() ? std::vector<std::string>{config.recipe} : cases.recipes;
  const std::vector<int64_t> depths =
      cases.layers.empty() ? std::vector<int64_t>{config.model.layers} : cases.layers;
  RETURN_IF_ERROR(OpenDatasets(config).status());
  for (const std::string& name : recipes) {
    ASSIGN_OR_RETURN(const Recipe recipe, FindRecipe(name));
    for (const int64_t layers : depths) {
      config.model.layers = layers;
      Json row = Json::Object({{"name", "step"},
                               {"model", config.name},
                               {"recipe", name},
                               {"layers", layers},
                               {"activations", ActivationsName(config.memory.activations)},
                               {"parameters", CountParameters(config.model)},
                               {"tokens", config.tokens_per_step()}});
      const Status status = MeasureCase(backend, cases, config, recipe, &row);
      if (!status.ok()) row.Set("skipped", status.message());
      emit(row);
    }
  }
  return OkStatus();
}

}  // namespace nibble::bench
