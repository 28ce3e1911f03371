// SPDX-License-Identifier: Apache-2.0
//
// nibble quickstart: corpus, tokenizer, cluster, training, report; then everything stops.
#include <algorithm>
#include <chrono>
#include <memory>

#include "base/files.h"
#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/quickstart_data.h"
#include "client/cli/quickstart_report.h"
#include "client/cli/watch.h"
#include "client/lib/job_yaml.h"
#include "client/lib/local_cluster.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

using std::chrono::steady_clock;

constexpr char kAnyPort[] = "127.0.0.1:0";
constexpr char kPrompt[] = "If you want to";
constexpr char kTemperature[] = "0.7";
constexpr char kTopK[] = "40";
constexpr int kSampleTokens = 80;
constexpr int kPromptTokens = 8;  // at most; prompt and sample share the model's positions
constexpr int kDefaultVocabulary = 4096;
constexpr int kShownLogLines = 15;
constexpr char kReferenceSuffix[] = "-bf16";  // name of the job that --compare adds

double SecondsFrom(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

// One quickstart from start to end. Progress goes to `screen`, so that stdout can stay JSON.
class Quickstart {
 public:
  Quickstart(CliContext& context, const QuickstartOptions& options)
      : context_(context),
        options_(options),
        screen_(options.json ? context.err : context.out),
        terminal_(context.terminal) {
    if (options.json) terminal_.out_is_tty = terminal_.err_is_tty;
    terminal_.color = terminal_.color && terminal_.out_is_tty && !options.json;
  }

  Status Run();
  const QuickstartReport& report() const { return report_; }

 private:
  Status FindFiles();
  Status StartCluster();
  Status TrainAll();
  Result<QuickstartRun> Train(const std::string& recipe, const std::string& name);
  // Ends jobs of this quickstart that still live: of a run that was killed, or of this one when it
  // stops early. They would take the device from the next run.
  Status CancelLiveJobs(Client& client);
  void ShowLogs(Client& client, const std::string& job);
  void Sample();
  void Say(const std::string& text) { screen_ << text << std::endl; }

  CliContext& context_;
  const QuickstartOptions& options_;
  std::ostream& screen_;
  Terminal terminal_;
  std::string bin_dir_;
  ParsedJob spec_;
  QuickstartData data_;
  std::unique_ptr<LocalCluster> cluster_;
  std::unique_ptr<Client> client_;
  QuickstartReport report_;
};

// The job file: --spec, or examples/quickstart.yaml in the current folder or the source tree that
// this program was built in.
Result<std::string> FindSpec(const std::string& given, const std::string& bin_dir) {
  if (!given.empty()) return given;
  constexpr char kExample[] = "examples/quickstart.yaml";
  for (const std::string& folder : {std::string("."), JoinPath(bin_dir, "../../..")}) {
    const std::string path = JoinPath(folder, kExample);
    if (PathExists(path)) return path;
  }
  return NotFoundError(std::string(kExample) + " is not here; name a job file with --spec");
}

Status Quickstart::FindFiles() {
  ASSIGN_OR_RETURN(bin_dir_, ExecutableDirectory());
  report_.program = JoinPath(bin_dir_, "nibble");
  ASSIGN_OR_RETURN(const std::string path, FindSpec(options_.spec, bin_dir_));
  ASSIGN_OR_RETURN(spec_, ReadJobFile(path));
  for (const std::string& setting : options_.settings) {
    RETURN_IF_ERROR(ApplySetting(setting, &spec_.spec));
  }
  std::string state_dir = options_.state_dir;
  if (state_dir.empty()) {
    const std::string home = ReadEnvironment("HOME");
    state_dir = JoinPath(home.empty() ? "." : home, ".nibble/quickstart");
  }
  ASSIGN_OR_RETURN(report_.state_dir, MakeAbsoluteDirectory(state_dir));
  data_.folder = JoinPath(report_.state_dir, "data");
  data_.bin_dir = bin_dir_;
  data_.text = options_.text;
  const int vocabulary = spec_.spec.model().vocab_size();
  data_.vocab_size = vocabulary > 0 ? vocabulary : kDefaultVocabulary;
  data_.note = [this](const std::string& text) { Say(text); };
  return OkStatus();
}

Status Quickstart::StartCluster() {
  LocalClusterOptions local;
  local.bin_dir = bin_dir_;
  local.state_dir = report_.state_dir;
  local.listen = kAnyPort;
  local.http = kAnyPort;
  local.note = [this](const std::string& text) { context_.Note(text); };
  local.on_give_up = [this] { context_.interrupt.Trigger(); };
  ASSIGN_OR_RETURN(cluster_, LocalCluster::Start(local, context_.interrupt));
  ASSIGN_OR_RETURN(const ConnectionOptions connection, ResolveConnection(cluster_->connection()));
  ASSIGN_OR_RETURN(client_, Client::Connect(connection, context_.interrupt));
  Say("controller at " + cluster_->server() + ", metrics at http://" + cluster_->http_address() +
      "/metrics, one CPU worker");
  return OkStatus();
}

void Quickstart::ShowLogs(Client& client, const std::string& job) {
  v1::StreamLogsRequest request;
  request.set_job(job);
  request.set_tail(kShownLogLines);
  const Status status = client.StreamLogs(request, [&](const v1::StreamLogsResponse& line) {
    context_.err << "  " << line.text() << "\n";
    return true;
  });
  if (!status.ok()) context_.Note("no logs: " + status.message());
}

Result<QuickstartRun> Quickstart::Train(const std::string& recipe, const std::string& name) {
  const auto start = steady_clock::now();
  v1::SubmitJobRequest request;
  *request.mutable_spec() = spec_.spec;
  v1::JobSpec& spec = *request.mutable_spec();
  spec.mutable_metadata()->set_name(name);
  spec.mutable_data()->set_path(data_.tokens_path());
  spec.mutable_data()->clear_tokenizer();  // the one beside the shards
  if (!recipe.empty()) {
    spec.mutable_precision()->Clear();
    spec.mutable_precision()->set_recipe(recipe);
  }
  request.set_user(CurrentUser());
  const auto response = client_->SubmitJob(request);
  if (!response.ok()) {
    std::string message = response.status().message();
    for (const v1::FieldViolation& violation : client_->last_error().violations()) {
      message += "\n  " + violation.field() + ": " + violation.description();
    }
    return Status(response.status().code(), message);
  }
  const std::string id = response->job().id();
  Say("submitted " + id + ": recipe " + response->job().spec().precision().recipe() + ", " +
      FormatCount(static_cast<double>(response->estimate().parameters())) + " parameters");
  QuickstartRun run;
  JobView view;
  RETURN_IF_ERROR(FollowJob(*client_, id, screen_, terminal_, view));
  ASSIGN_OR_RETURN(run.job, client_->GetJob(id));
  if (run.job.state() != v1::JOB_STATE_SUCCEEDED) {
    ShowLogs(*client_, id);
    return InternalError(EndSentence(run.job));
  }
  v1::GetMetricsRequest metrics;
  metrics.set_job(id);
  ASSIGN_OR_RETURN(const v1::GetMetricsResponse points, client_->GetMetrics(metrics));
  run.summary = Summarize(run.job, points);
  for (const auto& [memory_class, bytes] : view.memory_bytes()) {
    run.summary.memory_bytes.emplace(memory_class, bytes);
  }
  run.health = view.health();
  run.health_lines = view.HealthLines();
  run.wall_seconds = SecondsFrom(start);
  return run;
}

// Generates text from the first run's checkpoint. A failure is told, not fatal: training is done.
void Quickstart::Sample() {
  report_.prompt = kPrompt;
  const int positions = report_.runs[0].job.spec().data().seq_len();
  const int tokens = std::clamp(positions - kPromptTokens, 1, kSampleTokens);
  const auto generated =
      RunJsonTool({JoinPath(bin_dir_, "nibble-trainer"), "generate", "--checkpoint",
                   report_.runs[0].job.checkpoint_path(), "--prompt", kPrompt, "--tokens",
                   std::to_string(tokens), "--temperature", kTemperature, "--top-k", kTopK},
                  JoinPath(report_.state_dir, "logs/generate.log"), context_.interrupt);
  if (generated.ok()) {
    report_.sample = (*generated)["text"].AsString();
  } else {
    context_.Note("no sample: " + generated.status().message());
  }
}

Status Quickstart::CancelLiveJobs(Client& client) {
  const std::string name = spec_.spec.metadata().name();
  ASSIGN_OR_RETURN(const std::vector<v1::Job> jobs, client.ListJobs({}, 0));
  for (const v1::Job& job : jobs) {
    const std::string& job_name = job.spec().metadata().name();
    if (IsTerminal(job.state()) || (job_name != name && job_name != name + kReferenceSuffix)) {
      continue;
    }
    v1::CancelJobRequest request;
    request.set_job(job.id());
    request.set_now(true);
    request.set_actor(CurrentUser());
    RETURN_IF_ERROR(client.CancelJob(request).status());
    Say("cancelled " + job.id() + ", which had not ended");
  }
  return OkStatus();
}

Status Quickstart::TrainAll() {
  RETURN_IF_ERROR(CancelLiveJobs(*client_));
  const std::string name = spec_.spec.metadata().name();
  ASSIGN_OR_RETURN(QuickstartRun run, Train(options_.recipe, name));
  report_.runs.push_back(std::move(run));
  Sample();
  if (options_.compare) {
    ASSIGN_OR_RETURN(QuickstartRun reference, Train("bf16", name + kReferenceSuffix));
    report_.runs.push_back(std::move(reference));
  }
  return OkStatus();
}

Status Quickstart::Run() {
  const auto start = steady_clock::now();
  RETURN_IF_ERROR(FindFiles());
  RETURN_IF_ERROR(PrepareQuickstartData(data_, context_.interrupt));
  RETURN_IF_ERROR(StartCluster());
  if (const Status trained = TrainAll(); !trained.ok()) {
    // The context's interrupt may be what ended it, so tidying up has its own.
    Interrupt never;
    const auto client = Client::Connect(client_->options(), never);
    const Status tidied = client.ok() ? CancelLiveJobs(**client) : client.status();
    if (!tidied.ok()) context_.Note("cannot cancel the job: " + tidied.message());
    if (trained.code() == StatusCode::kCancelled) context_.Note("interrupted; stopping everything");
    return trained;
  }
  client_.reset();
  RETURN_IF_ERROR(cluster_->Stop());
  report_.wall_seconds = SecondsFrom(start);
  return OkStatus();
}

}  // namespace

int RunQuickstart(CliContext& context, const QuickstartOptions& options) {
  Quickstart quickstart(context, options);
  if (const Status status = quickstart.Run(); !status.ok()) {
    const int code = context.Fail(status);
    return code == kExitUnreachable ? kExitFailure : code;
  }
  if (options.json) {
    context.out << QuickstartJson(quickstart.report()).Dump(2) << std::endl;
  } else {
    PrintQuickstart(context.out, quickstart.report());
  }
  return kExitOk;
}

}  // namespace nibble::cli
