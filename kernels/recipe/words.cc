// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/words.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/strings.h"

namespace nibble::recipe_words {
namespace {

// QuEST, 4 bits (arXiv 2502.05003).
constexpr float kQuestAlpha = 2.513930578568423f;
constexpr float kE4M3Bound = 448.0f;
constexpr int kDelayedWindow = 1024;  // Transformer Engine's history length

constexpr const char* kScaleForms =
    "f32(F), p2(F), cur(F), cur(F,p2), dly(F), e8f, e8u(F), nv(BOUND), u53(T), qst, a34, "
    "eden(GROUP,BOUND,FACTOR), quest(ALPHA)";

// How a rule's arguments are read: kNone takes none, kMax one optional value, the others as written
// in kScaleForms.
enum class Arguments : uint8_t { kNone, kMax, kMaxP2, kEden, kAlpha };
struct ScaleRow {
  const char* word;
  ScaleRule rule;
  Arguments arguments;
  float default_max;  // 0: the element's largest value
};
constexpr ScaleRow kScales[] = {
    {"f32", ScaleRule::kF32, Arguments::kMax, 0},
    {"p2", ScaleRule::kP2, Arguments::kMax, 0},
    {"cur", ScaleRule::kCurrent, Arguments::kMaxP2, 0},
    {"cur", ScaleRule::kCurrentP2, Arguments::kMaxP2, 0},
    {"dly", ScaleRule::kDelayed, Arguments::kMax, 0},
    {"e8f", ScaleRule::kE8Floor, Arguments::kNone, 0},
    {"e8u", ScaleRule::kE8Up, Arguments::kMax, 0},
    {"nv", ScaleRule::kNv, Arguments::kMax, kE4M3Bound},
    {"u53", ScaleRule::kU53, Arguments::kMax, kE4M3Bound},
    {"qst", ScaleRule::kQuartet, Arguments::kNone, 0},
    {"a34", ScaleRule::kA34, Arguments::kNone, 0},
    {"eden", ScaleRule::kEden, Arguments::kEden, 256.0f},
    {"quest", ScaleRule::kQuest, Arguments::kAlpha, 0},
};
constexpr float kEdenFactor = 0.988125f;  // (17/16) * 0.93, arXiv 2601.22813
constexpr int kEdenGroup = 16;

Status FormError(const std::string& field, const Json& value, const char* forms) {
  return InvalidArgumentError("recipe field " + field + " is " + value.Dump() +
                              "; expected one of: " + forms);
}

// A positive finite float.
Result<float> ReadPositive(const std::string& text) {
  const std::string full = !text.empty() && text[0] == '.' ? "0" + text : text;
  ASSIGN_OR_RETURN(const double value, ParseDouble(full));
  const float narrow = static_cast<float>(value);
  if (!std::isfinite(narrow) || !(narrow > 0)) return InvalidArgumentError("not above 0");
  return narrow;
}

Status ReadPositiveInto(const std::string& text, float* out) {
  ASSIGN_OR_RETURN(*out, ReadPositive(text));
  return OkStatus();
}

// A whole number from `low` to `high` in decimal digits; 0 otherwise.
int ReadCount(const std::string& text, int low, int high) {
  const Result<int64_t> value = ParseInt(text);
  return value.ok() && *value >= low && *value <= high ? static_cast<int>(*value) : 0;
}

Status ReadScaleArguments(const ScaleRow& row, const std::vector<std::string>& args, Quant* quant) {
  const Status bad = InvalidArgumentError("arguments");
  switch (row.arguments) {
    case Arguments::kNone:
      quant->scale_max = 0;
      return args.empty() ? OkStatus() : bad;
    case Arguments::kAlpha:
      quant->scale_max = 0;
      quant->scale_factor = kQuestAlpha;
      if (args.size() > 1) return bad;
      if (!args.empty()) return ReadPositiveInto(args[0], &quant->scale_factor);
      return OkStatus();
    case Arguments::kEden:
      quant->correction_group = kEdenGroup;
      quant->scale_factor = kEdenFactor;
      if (args.empty()) return OkStatus();
      if (args.size() != 3) return bad;
      quant->correction_group = ReadCount(args[0], 1, 65536);
      if (quant->correction_group == 0) return bad;
      RETURN_IF_ERROR(ReadPositiveInto(args[1], &quant->scale_max));
      return ReadPositiveInto(args[2], &quant->scale_factor);
    case Arguments::kMax:
    case Arguments::kMaxP2:
      break;
  }
  size_t left = args.size();
  if (row.arguments == Arguments::kMaxP2 && left > 0 && args[left - 1] == "p2") {
    quant->scale = ScaleRule::kCurrentP2;
    --left;
  }
  if (left > 1) return bad;
  return left == 1 ? ReadPositiveInto(args[0], &quant->scale_max) : OkStatus();
}

const ScaleRow& RowOf(ScaleRule rule) {
  for (const ScaleRow& row : kScales) {
    if (row.rule == rule) return row;
  }
  return kScales[0];
}

}  // namespace

Result<int> Pick(const std::string& field, const Json& value, const Words& words) {
  if (!value.is_string()) {
    return InvalidArgumentError("recipe field " + field + " is " + value.Dump() +
                                "; expected one of: " + StrJoin(words, ", "));
  }
  const auto found = std::find(words.begin(), words.end(), value.AsString());
  if (found != words.end()) return static_cast<int>(found - words.begin());
  return InvalidArgumentError(
      UnknownNameMessage("value of recipe field " + field, value.AsString(), words));
}

Result<Call> ReadCall(const std::string& field, const Json& value, const char* forms) {
  if (!value.is_string()) return FormError(field, value, forms);
  const std::string& text = value.AsString();
  const size_t open = text.find('(');
  Call call;
  call.word = std::string(StrTrim(text.substr(0, open)));
  if (open == std::string::npos) return call;
  std::string inside(StrTrim(text.substr(open + 1)));
  if (inside.empty() || inside.back() != ')') return FormError(field, value, forms);
  inside.pop_back();
  for (const std::string& part : StrSplit(inside, ',')) call.args.emplace_back(StrTrim(part));
  return call;
}

std::string FloatText(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  return std::string(text, end.ptr);
}

Status ReadBlock(const std::string& field, const Json& value, Quant* quant) {
  static constexpr const char* kForms = "tensor, tok, och, ich, 1xB, BxB (B = 2 to 65536)";
  static const Words kVectors = {"tensor", "tok", "och", "ich"};
  if (!value.is_string()) return FormError(field, value, kForms);
  const std::string& text = value.AsString();
  const auto vector = std::find(kVectors.begin(), kVectors.end(), text);
  if (vector != kVectors.end()) {
    quant->block = static_cast<Block>(vector - kVectors.begin());
    return OkStatus();
  }
  const size_t cross = text.find('x');
  if (cross == std::string::npos) return FormError(field, value, kForms);
  const std::string rows = text.substr(0, cross);
  const std::string cols = text.substr(cross + 1);
  quant->group = ReadCount(cols, 2, 65536);
  if (quant->group == 0 || (rows != "1" && rows != cols)) return FormError(field, value, kForms);
  quant->block = rows == "1" ? Block::kGroup : Block::kTile;
  return OkStatus();
}

Status ReadScale(const std::string& field, const Json& value, Quant* quant) {
  ASSIGN_OR_RETURN(const Call call, ReadCall(field, value, kScaleForms));
  for (const ScaleRow& row : kScales) {
    if (row.word != call.word) continue;
    quant->scale = row.rule;
    quant->scale_max = row.default_max > 0 ? row.default_max : ElemMax(quant->elem);
    if (!ReadScaleArguments(row, call.args, quant).ok()) {
      return FormError(field, value, kScaleForms);
    }
    quant->window = DefaultWindow(quant->scale);
    quant->scale_round = DefaultScaleRound(quant->scale);
    return OkStatus();
  }
  Words known;
  for (const ScaleRow& row : kScales) {
    if (row.rule != ScaleRule::kCurrentP2) known.emplace_back(row.word);
  }
  return InvalidArgumentError(
      UnknownNameMessage("value of recipe field " + field, call.word, known));
}

Status ReadRotation(const std::string& field, const Json& value, Quant* quant) {
  static constexpr const char* kForms =
      "none, H<n>, R<n>, R<n>(fixed), R<n>(fresh), Rb (n a power of two from 2 to 4096; Rb needs "
      "block 1xB or BxB)";
  ASSIGN_OR_RETURN(const Call call, ReadCall(field, value, kForms));
  if (call.word == "none" && call.args.empty()) return OkStatus();
  const bool signs = !call.word.empty() && call.word[0] == 'R';
  if (!signs && (call.word.empty() || call.word[0] != 'H' || !call.args.empty())) {
    return FormError(field, value, kForms);
  }
  const bool by_block = call.word == "Rb" && call.args.empty();
  const int size = by_block ? quant->group : ReadCount(call.word.substr(1), 2, 4096);
  if (size < 2 || (size & (size - 1)) != 0 || call.args.size() > 1) {
    return FormError(field, value, kForms);
  }
  quant->rotation.size = size;
  if (!signs) return OkStatus();
  constexpr int kFixedSize = 16;  // R16 of Transformer Engine
  quant->rotation.signs = size == kFixedSize && !by_block ? Signs::kFixed : Signs::kFresh;
  if (call.args.empty()) return OkStatus();
  if (call.args[0] != "fixed" && call.args[0] != "fresh") return FormError(field, value, kForms);
  quant->rotation.signs = call.args[0] == "fixed" ? Signs::kFixed : Signs::kFresh;
  return OkStatus();
}

Status ReadAlternatives(const std::string& field, const Json& value, Alternatives* alternatives) {
  static constexpr const char* kForms =
      "none, AoverB(METRIC) such as 4over6(mse), METRIC mse, mae or max";
  ASSIGN_OR_RETURN(const Call call, ReadCall(field, value, kForms));
  if (call.word == "none" && call.args.empty()) return OkStatus();
  const size_t over = call.word.find("over");
  if (over == std::string::npos || call.args.size() > 1) return FormError(field, value, kForms);
  const Result<float> second = ReadPositive(call.word.substr(0, over));
  const Result<float> first = ReadPositive(call.word.substr(over + 4));
  if (!first.ok() || !second.ok()) return FormError(field, value, kForms);
  alternatives->maxima[0] = *first;
  alternatives->maxima[1] = *second;
  if (call.args.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const int metric, Pick(field + " metric", Json(call.args[0]), Metrics()));
  alternatives->metric = static_cast<ErrorMetric>(metric);
  return OkStatus();
}

Status ReadMaxGradient(const std::string& field, const Json& value, WeightEstimator* estimator) {
  static constexpr const char* kForms =
      "ignore, absmax, softmax(TEMPERATURE), softmax_backward(TEMPERATURE)";
  ASSIGN_OR_RETURN(const Call call, ReadCall(field, value, kForms));
  ASSIGN_OR_RETURN(const int word, Pick(field, Json(call.word), MaxGradients()));
  estimator->max_gradient = static_cast<MaxGradient>(word);
  if (call.args.empty()) return OkStatus();
  const Result<float> temperature = ReadPositive(call.args[0]);
  if (call.args.size() > 1 || !temperature.ok() ||
      estimator->max_gradient < MaxGradient::kSoftmax) {
    return FormError(field, value, kForms);
  }
  ASSIGN_OR_RETURN(estimator->max_temperature, ParseDouble(call.args[0]));
  return OkStatus();
}

std::string MaxGradientName(const WeightEstimator& estimator) {
  const std::string& word = MaxGradients()[static_cast<size_t>(estimator.max_gradient)];
  if (estimator.max_gradient < MaxGradient::kSoftmax) return word;
  return word + "(" + Json(estimator.max_temperature).Dump() + ")";
}

int DefaultWindow(ScaleRule rule) { return rule == ScaleRule::kDelayed ? kDelayedWindow : 1; }
ScaleRound DefaultScaleRound(ScaleRule rule) {
  return rule == ScaleRule::kEden ? ScaleRound::kStochastic : ScaleRound::kEven;
}

}  // namespace nibble::recipe_words

namespace nibble {

using recipe_words::FloatText;

std::string BlockName(Block block, int group) {
  switch (block) {
    case Block::kTensor:
      return "tensor";
    case Block::kToken:
      return "tok";
    case Block::kOutputChannel:
      return "och";
    case Block::kInputChannel:
      return "ich";
    case Block::kGroup:
      return StrFormat("1x%d", group);
    case Block::kTile:
      return StrFormat("%dx%d", group, group);
  }
  return "?";
}

std::string ScaleName(const Quant& quant) {
  if (quant.scale == ScaleRule::kNone) return "none";
  const recipe_words::ScaleRow& row = recipe_words::RowOf(quant.scale);
  const std::string word = row.word;
  switch (row.arguments) {
    case recipe_words::Arguments::kNone:
      return word;
    case recipe_words::Arguments::kAlpha:
      return quant.scale_factor == recipe_words::kQuestAlpha
                 ? word
                 : word + "(" + FloatText(quant.scale_factor) + ")";
    case recipe_words::Arguments::kEden:
      return word + StrFormat("(%d,", quant.correction_group) + FloatText(quant.scale_max) + "," +
             FloatText(quant.scale_factor) + ")";
    default:
      return word + "(" + FloatText(quant.scale_max) +
             (quant.scale == ScaleRule::kCurrentP2 ? ",p2)" : ")");
  }
}

std::string RotationName(const Rotation& rotation) {
  if (rotation.size == 0) return "none";
  if (rotation.signs == Signs::kNone) return StrFormat("H%d", rotation.size);
  const bool fixed = rotation.signs == Signs::kFixed;
  const bool usual = fixed == (rotation.size == 16);
  return StrFormat("R%d%s", rotation.size, usual ? "" : fixed ? "(fixed)" : "(fresh)");
}

std::string AlternativesName(const Alternatives& alternatives) {
  if (!alternatives.enabled()) return "none";
  return FloatText(alternatives.maxima[1]) + "over" + FloatText(alternatives.maxima[0]) + "(" +
         recipe_words::Metrics()[static_cast<size_t>(alternatives.metric)] + ")";
}

}  // namespace nibble
