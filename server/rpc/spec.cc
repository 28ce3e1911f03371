// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/spec.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>

#include "base/sha256.h"
#include "base/strings.h"
#include "kernels/recipe/proofs.h"
#include "worker/spec/recipe_fit.h"

namespace nibble::rpc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::util::TimeUtil;

constexpr int64_t kDefaultStartTimeoutSeconds = 600;
constexpr int64_t kDefaultStallTimeoutSeconds = 900;
constexpr int kDefaultInfraRetries = 20;

// Exit codes of a trainer worth another try: anything a program may return by itself, as the spec
// asks for restarts "after the trainer itself failed".
std::vector<int> EveryExitCode() {
  std::vector<int> codes;
  for (int code = 1; code < 256; ++code) codes.push_back(code);
  return codes;
}

const FieldDescriptor* FindJsonField(const Descriptor& type, const std::string& name) {
  for (int i = 0; i < type.field_count(); ++i) {
    if (type.field(i)->json_name() == name) return type.field(i);
  }
  return nullptr;
}

bool IsInteger64(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 ||
         field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64;
}

// Keys sorted, and proto3 JSON's strings of 64-bit integers made numbers again.
Json Canonical(const Json& json, const Descriptor* type) {
  std::vector<Json::Member> members = json.members();
  std::sort(members.begin(), members.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& [key, value] : members) {
    const FieldDescriptor* field = type != nullptr ? FindJsonField(*type, key) : nullptr;
    if (value.is_object()) {
      const bool message = field != nullptr && field->message_type() != nullptr &&
                           !field->is_map() && !field->is_repeated();
      value = Canonical(value, message ? field->message_type() : nullptr);
    } else if (field != nullptr && IsInteger64(*field) && value.is_string()) {
      value = Json(ParseInt(value.AsString()).value_or(0));
    }
  }
  return Json::ObjectOf(std::move(members));
}

// Fields that a newer client sent and this build would silently forget.
void CheckUnknownFields(const Message& message, const std::string& path,
                        std::vector<FieldError>& errors) {
  const auto* reflection = message.GetReflection();
  const auto& unknown = reflection->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count(); ++i) {
    errors.push_back({path.empty() ? "spec" : path,
                      StrFormat("has field number %d, which this controller does not know; "
                                "upgrade the controller or drop the field",
                                unknown.field(i).number())});
  }
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->is_repeated() || field->message_type() == nullptr) continue;
    CheckUnknownFields(reflection->GetMessage(message, field),
                       (path.empty() ? "" : path + ".") + field->json_name(), errors);
  }
}

void FillSchedulingDefaults(v1::JobSpec& spec) {
  v1::Metadata& metadata = *spec.mutable_metadata();
  if (metadata.project().empty()) metadata.set_project("default");
  if (spec.queue().empty()) spec.set_queue("main");
  if (!spec.priority_class().empty()) {
    spec.set_priority(PriorityOfClass(spec.priority_class()).value_or(0));
  }
  v1::Resources& resources = *spec.mutable_resources();
  if (resources.nodes() == 0) resources.set_nodes(1);
  if (resources.slots_per_node() == 0) resources.set_slots_per_node(1);
  if (resources.device().empty()) resources.set_device("any");
  if (!spec.has_start_timeout()) {
    *spec.mutable_start_timeout() = TimeUtil::SecondsToDuration(kDefaultStartTimeoutSeconds);
  }
  if (!spec.has_stall_timeout()) {
    *spec.mutable_stall_timeout() = TimeUtil::SecondsToDuration(kDefaultStallTimeoutSeconds);
  }
  v1::Retry& retry = *spec.mutable_retry();
  if (!retry.has_user()) retry.set_user(0);
  if (!retry.has_infra()) retry.set_infra(kDefaultInfraRetries);
}

// The training half as the parser completed it replaces what was submitted.
Status FillTrainingDefaults(const RunConfig& run, v1::JobSpec& spec) {
  Json complete = Json::Object();
  const Json resolved = RunConfigToJson(run);
  for (const auto& [key, value] : resolved.members()) {
    if (key != "run" && key != "metadata") complete.Set(key, value);
  }
  v1::JobSpec training;
  const auto parsed = google::protobuf::util::JsonStringToMessage(complete.Dump(), &training);
  if (!parsed.ok())
    return InternalError("the resolved spec does not read back: " + parsed.ToString());
  *spec.mutable_model() = training.model();
  *spec.mutable_data() = training.data();
  *spec.mutable_optimizer() = training.optimizer();
  *spec.mutable_schedule() = training.schedule();
  *spec.mutable_precision() = training.precision();
  *spec.mutable_checkpoint() = training.checkpoint();
  *spec.mutable_metrics() = training.metrics();
  *spec.mutable_memory() = training.memory();
  spec.set_seed(training.seed());
  return OkStatus();
}

bool Mentions(const std::vector<FieldError>& errors, const std::string& field) {
  return std::any_of(errors.begin(), errors.end(),
                     [&field](const FieldError& error) { return error.field == field; });
}

void ResolveRecipe(ResolvedSpec& resolved, std::vector<FieldError>& errors) {
  const RunConfig& run = resolved.run;
  const bool written_out = !run.recipe_json.empty();
  const std::string field = written_out ? "precision.recipeJson" : "precision.recipe";
  if (Mentions(errors, field)) return;
  Result<Recipe> recipe = written_out ? ParseRecipeText(run.recipe_json) : FindRecipe(run.recipe);
  if (!recipe.ok()) {
    errors.push_back({field, recipe.status().message()});
    return;
  }
  resolved.recipe = std::move(*recipe);
  if (!errors.empty()) return;  // sizes may be what is wrong
  const int64_t tokens = run.schedule.micro_batch * run.data.seq_len;
  const Status fits = CheckRecipeFits(run.model, resolved.recipe, tokens);
  if (!fits.ok()) errors.push_back({field, fits.message()});
}

// Keeps one error per field and text: header keys are looked at by both halves.
void DropRepeats(std::vector<FieldError>& errors) {
  std::vector<FieldError> kept;
  for (FieldError& error : errors) {
    const bool header = error.field == "apiVersion" || error.field == "kind";
    if (header && Mentions(kept, error.field)) continue;
    kept.push_back(std::move(error));
  }
  errors = std::move(kept);
}

}  // namespace

Result<std::string> CanonicalJson(const Message& message) {
  std::string text;
  const auto made = google::protobuf::util::MessageToJsonString(message, &text);
  if (!made.ok()) return InternalError("a message has no JSON form: " + made.ToString());
  ASSIGN_OR_RETURN(const Json json, Json::Parse(text));
  return Canonical(json, message.GetDescriptor()).Dump();
}

Result<v1::JobSpec> SpecFromJson(const std::string& json) {
  v1::JobSpec spec;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // a newer controller may have written it
  const auto parsed = google::protobuf::util::JsonStringToMessage(json, &spec, options);
  if (!parsed.ok()) return DataLossError("a stored spec does not read back: " + parsed.ToString());
  return spec;
}

ResolvedSpec ResolveSpec(const v1::JobSpec& submitted, std::vector<FieldError>& errors) {
  ResolvedSpec resolved;
  resolved.proto = submitted;
  if (submitted.ByteSizeLong() > core::kMaxSpecBytes) {
    errors.push_back({"spec", StrFormat("has %zu bytes; at most %zu", submitted.ByteSizeLong(),
                                        core::kMaxSpecBytes)});
    return resolved;
  }
  CheckUnknownFields(submitted, "", errors);
  CheckSchedulingFields(submitted, errors);
  Result<std::string> text = CanonicalJson(submitted);
  const Result<Json> json = text.ok() ? Json::Parse(*text) : Result<Json>(text.status());
  if (!json.ok()) {
    errors.push_back({"spec", json.status().message()});
    return resolved;
  }
  resolved.run = ParseRunConfig(*json, errors);
  ResolveRecipe(resolved, errors);
  DropRepeats(errors);
  if (!errors.empty()) return resolved;

  FillSchedulingDefaults(resolved.proto);
  if (!resolved.run.recipe_json.empty()) resolved.run.recipe = resolved.recipe.name;
  const Status filled = FillTrainingDefaults(resolved.run, resolved.proto);
  text = filled.ok() ? CanonicalJson(resolved.proto) : Result<std::string>(filled);
  if (!text.ok()) {
    errors.push_back({"spec", text.status().message()});
    return resolved;
  }
  resolved.json = std::move(*text);
  if (resolved.json.size() > core::kMaxSpecBytes) {
    errors.push_back({"spec", StrFormat("has %zu bytes as JSON; at most %zu", resolved.json.size(),
                                        core::kMaxSpecBytes)});
  }
  return resolved;
}

std::string WorkerFeature(const std::string& worker_id) { return "worker:" + worker_id; }

core::JobSpec ToCoreSpec(const ResolvedSpec& resolved, const std::string& user,
                         int64_t memory_bytes) {
  const v1::JobSpec& spec = resolved.proto;
  core::JobSpec out;
  out.name = spec.metadata().name();
  out.project = spec.metadata().project();
  out.user = user;
  out.queue = spec.queue();
  out.priority = spec.priority();
  out.priority_class = spec.priority_class();
  out.resources.nodes = spec.resources().nodes();
  out.resources.slots_per_node = spec.resources().slots_per_node();
  out.resources.device_kind =
      core::FromName<core::DeviceKind>(spec.resources().device()).value_or(core::DeviceKind::kAny);
  out.resources.required_features = {spec.resources().required_features().begin(),
                                     spec.resources().required_features().end()};
  for (std::string& proof : RequiredProofs(resolved.recipe)) {
    out.resources.required_features.push_back(std::move(proof));
  }
  if (!spec.placement().required().empty()) {
    out.resources.required_features.push_back(WorkerFeature(spec.placement().required()));
  }
  out.resources.exclude_workers = {spec.placement().exclude().begin(),
                                   spec.placement().exclude().end()};
  out.resources.memory_bytes_per_device =
      spec.resources().memory_bytes() > 0 ? spec.resources().memory_bytes() : memory_bytes;
  out.retry.user = spec.retry().user();
  out.retry.infra_per_day = spec.retry().infra();
  out.retry.on_exit_codes = EveryExitCode();
  out.time_limit_ms = TimeUtil::DurationToMilliseconds(spec.time_limit());
  out.start_timeout_ms = TimeUtil::DurationToMilliseconds(spec.start_timeout());
  out.stall_timeout_ms = TimeUtil::DurationToMilliseconds(spec.stall_timeout());
  for (const auto& [key, value] : spec.metadata().labels()) out.labels.emplace_back(key, value);
  std::sort(out.labels.begin(), out.labels.end());
  out.spec_json = resolved.json;
  out.spec_hash = Sha256Hex(resolved.json);
  return out;
}

}  // namespace nibble::rpc
