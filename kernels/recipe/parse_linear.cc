// SPDX-License-Identifier: Apache-2.0
//
// JSON -> LinearRecipe: slots and estimators.
#include <algorithm>
#include <cmath>
#include <string>

#include "base/strings.h"
#include "kernels/recipe/parse.h"

namespace nibble::recipe_words {
namespace {

const Words kSlotKeys = {"elem",   "block",        "scale", "scale_round", "outer",
                         "round",  "xform",        "pre",   "post",        "mask",
                         "window", "alternatives", "split", "fold",        "fallback_error",
                         "source", "hold"};

// Picks a word of `words` into an enum, when the field is there.
template <typename Enum>
Status ReadWord(const std::string& where, const char* key, const Json& json, const Words& words,
                Enum* out) {
  const Json* value = json.Find(key);
  if (value == nullptr) return OkStatus();
  ASSIGN_OR_RETURN(const int word, Pick(where + "." + key, *value, words));
  *out = static_cast<Enum>(word);
  return OkStatus();
}

Status ReadOcc(const std::string& field, const Json& json, Occ* occ) {
  RETURN_IF_ERROR(CheckKeys(field, json, {"alpha", "scope", "comp"}));
  occ->enabled = true;
  if (const Json* alpha = json.Find("alpha")) {
    ASSIGN_OR_RETURN(occ->alpha, ReadNumber(field + ".alpha", *alpha, 0.5, 1.0));
  }
  RETURN_IF_ERROR(ReadWord(field, "scope", json, OccScopes(), &occ->scope));
  return ReadWord(field, "comp", json, OccComps(), &occ->comp);
}

Status ReadPre(const std::string& field, const Json& json, Occ* occ) {
  if (json.is_string()) return Pick(field, json, {"none"}).status();
  RETURN_IF_ERROR(CheckKeys(field, json, {"occ"}));
  if (const Json* settings = json.Find("occ")) return ReadOcc(field + ".occ", *settings, occ);
  return OkStatus();
}

// "none", {"mean": {"elem"}} or {"channels": {"share", "elem", "from_step", "window"}}.
Status ReadSplit(const std::string& field, const Json& json, Quant* quant) {
  if (json.is_string()) return Pick(field, json, {"none"}).status();
  RETURN_IF_ERROR(CheckKeys(field, json, {"mean", "channels"}));
  if (json.members().size() != 1) {
    return InvalidArgumentError("recipe field " + field + " is " + json.Dump() +
                                "; expected mean or channels, one of them");
  }
  const bool mean = json.members()[0].first == "mean";
  const Json& settings = json.members()[0].second;
  const std::string where = field + (mean ? ".mean" : ".channels");
  RETURN_IF_ERROR(CheckKeys(where, settings,
                            mean ? Words{"elem"} : Words{"share", "elem", "from_step", "window"}));
  quant->split = mean ? Split::kMean : Split::kChannels;
  RETURN_IF_ERROR(ReadWord(where, "elem", settings, Elems(), &quant->split_elem));
  if (mean) return OkStatus();
  const Json* share = settings.Find("share");
  if (share == nullptr) {
    return InvalidArgumentError("recipe field " + where +
                                ".share is missing; it is the share of "
                                "the channels, above 0 and below 1");
  }
  ASSIGN_OR_RETURN(const double value, ReadNumber(where + ".share", *share, 0, 1));
  quant->split_share = static_cast<float>(value);
  if (const Json* from = settings.Find("from_step")) {
    ASSIGN_OR_RETURN(quant->split_from, ReadWhole(where + ".from_step", *from, 0, 1 << 30));
  }
  if (const Json* window = settings.Find("window")) {
    ASSIGN_OR_RETURN(quant->split_window, ReadWhole(where + ".window", *window, 0, 1 << 30));
  }
  return OkStatus();
}

// "none", "sw" (Gd: the scales of W) or "sx" (Gw: the scales of X).
Status ReadFold(const std::string& where, Slot slot, const Json& value, Quant* quant) {
  const std::string field = where + ".fold";
  ASSIGN_OR_RETURN(const int word, Pick(field, value, {"none", "sw", "sx"}));
  if (word == 0) return OkStatus();
  if ((word == 1 && slot != Slot::kGd) || (word == 2 && slot != Slot::kGw)) {
    return InvalidArgumentError("recipe field " + field + " is " + value.Dump() +
                                "; sw (the scales of W) folds into Gd, sx (the scales of X) into "
                                "Gw");
  }
  quant->fold = true;
  return OkStatus();
}

Status ReadGrid(const std::string& where, const Json& json, Quant* quant) {
  if (const Json* block = json.Find("block")) {
    RETURN_IF_ERROR(ReadBlock(where + ".block", *block, quant));
  }
  if (const Json* scale = json.Find("scale")) {
    RETURN_IF_ERROR(ReadScale(where + ".scale", *scale, quant));
  }
  RETURN_IF_ERROR(ReadWord(where, "scale_round", json, ScaleRounds(), &quant->scale_round));
  RETURN_IF_ERROR(ReadWord(where, "outer", json, Outers(), &quant->outer));
  RETURN_IF_ERROR(ReadWord(where, "round", json, Rounds(), &quant->round));
  if (const Json* xform = json.Find("xform")) {
    RETURN_IF_ERROR(ReadRotation(where + ".xform", *xform, quant));
  }
  if (const Json* window = json.Find("window")) {
    ASSIGN_OR_RETURN(quant->window, ReadWhole(where + ".window", *window, 1, 65536));
  }
  if (const Json* hold = json.Find("hold")) {
    ASSIGN_OR_RETURN(quant->hold, ReadWhole(where + ".hold", *hold, 1, 1 << 20));
  }
  if (const Json* list = json.Find("alternatives")) {
    RETURN_IF_ERROR(ReadAlternatives(where + ".alternatives", *list, &quant->alternatives));
  }
  return OkStatus();
}

Status ReadSlot(const std::string& where, Slot slot, const Json& json, Quant* quant) {
  RETURN_IF_ERROR(CheckKeys(where, json, kSlotKeys));
  RETURN_IF_ERROR(ReadWord(where, "source", json, Sources(), &quant->source));
  if (quant->source == Source::kReuse) {
    if (json.members().size() == 1) return OkStatus();
    return InvalidArgumentError("recipe field " + where +
                                ": a slot with source reuse takes everything from the slot it "
                                "reuses; remove its other fields");
  }
  if (json.Find("elem") == nullptr) {
    return InvalidArgumentError("recipe field " + where +
                                ".elem is missing; expected one of: " + StrJoin(Elems(), ", "));
  }
  RETURN_IF_ERROR(ReadWord(where, "elem", json, Elems(), &quant->elem));
  RETURN_IF_ERROR(ReadGrid(where, json, quant));
  if (const Json* pre = json.Find("pre")) {
    RETURN_IF_ERROR(ReadPre(where + ".pre", *pre, &quant->pre));
  }
  if (const Json* post = json.Find("post")) {
    ASSIGN_OR_RETURN(const int word, Pick(where + ".post", *post, {"none", "e4m3_p2"}));
    quant->recast_e4m3 = word == 1;
  }
  RETURN_IF_ERROR(ReadWord(where, "mask", json, Masks(), &quant->mask));
  if (const Json* split = json.Find("split")) {
    RETURN_IF_ERROR(ReadSplit(where + ".split", *split, quant));
  }
  if (const Json* fold = json.Find("fold")) RETURN_IF_ERROR(ReadFold(where, slot, *fold, quant));
  if (const Json* error = json.Find("fallback_error")) {
    ASSIGN_OR_RETURN(quant->fallback_error, ReadNumber(where + ".fallback_error", *error, 0, 1));
  }
  return OkStatus();
}

Status ReadDge(const std::string& where, const Json& json, WeightEstimator* estimator) {
  RETURN_IF_ERROR(CheckKeys(where, json, {"k", "clip", "outside"}));
  if (const Json* k = json.Find("k")) {
    ASSIGN_OR_RETURN(estimator->k, ReadNumber(where + ".k", *k, 1, 100));
  }
  if (const Json* clip = json.Find("clip")) {
    ASSIGN_OR_RETURN(estimator->clip, ReadNumber(where + ".clip", *clip, 1e-3, 1e4));
  }
  const Json* outside = json.Find("outside");
  if (outside == nullptr || (outside->is_number() && outside->AsDouble() == 0)) return OkStatus();
  if (outside->AsString() != "extrapolate") {
    return InvalidArgumentError("recipe field " + where + ".outside is " + outside->Dump() +
                                "; expected 0 or \"extrapolate\"");
  }
  estimator->extrapolate = true;
  return OkStatus();
}

Status ReadWeightEstimator(const std::string& where, const Json& json, WeightEstimator* estimator) {
  static const Words kBare = {"ste", "dge", "power", "spline", "sigmoid"};
  if (json.is_string()) {
    ASSIGN_OR_RETURN(const int word, Pick(where, json, kBare));
    estimator->kind = static_cast<Estimator>(word);
    return OkStatus();
  }
  RETURN_IF_ERROR(CheckKeys(where, json, {"dge", "power", "sigmoid"}));
  if (json.members().size() != 1) {
    return InvalidArgumentError("recipe field " + where + " is " + json.Dump() +
                                "; expected one of \"ste\", \"spline\", {\"dge\":{..}}, "
                                "{\"power\":{..}} or {\"sigmoid\":{..}}");
  }
  const std::string& name = json.members()[0].first;
  const Json& settings = json.members()[0].second;
  const std::string field = where + "." + name;
  if (name == "dge") {
    estimator->kind = Estimator::kDge;
    return ReadDge(field, settings, estimator);
  }
  if (name == "power") {
    estimator->kind = Estimator::kPower;
    RETURN_IF_ERROR(CheckKeys(field, settings, {"k"}));
    if (const Json* k = settings.Find("k")) {
      ASSIGN_OR_RETURN(estimator->k, ReadNumber(field + ".k", *k, 1, 100));
    }
    return OkStatus();
  }
  estimator->kind = Estimator::kSigmoid;
  RETURN_IF_ERROR(CheckKeys(field, settings, {"temperature"}));
  if (const Json* t = settings.Find("temperature")) {
    ASSIGN_OR_RETURN(estimator->temperature, ReadNumber(field + ".temperature", *t, 1e-3, 1e3));
  }
  return OkStatus();
}

}  // namespace

Status CheckKeys(const std::string& where, const Json& json, const Words& known) {
  if (!json.is_object()) {
    return InvalidArgumentError("recipe field " + where + " is " + json.Dump() +
                                "; expected an object with: " + StrJoin(known, ", "));
  }
  for (const Json::Member& member : json.members()) {
    if (std::find(known.begin(), known.end(), member.first) == known.end()) {
      return InvalidArgumentError(
          UnknownNameMessage("recipe field in " + where, member.first, known));
    }
  }
  return OkStatus();
}

Result<double> ReadNumber(const std::string& field, const Json& value, double low, double high) {
  const double number = value.AsDouble(std::nan(""));
  if (!value.is_number() || !(number >= low && number <= high)) {
    return InvalidArgumentError(StrFormat("recipe field %s is %s; expected a number from %g to %g",
                                          field.c_str(), value.Dump().c_str(), low, high));
  }
  return number;
}

Result<int> ReadWhole(const std::string& field, const Json& value, int low, int high) {
  if (!value.is_int() || value.AsInt() < low || value.AsInt() > high) {
    return InvalidArgumentError(
        StrFormat("recipe field %s is %s; expected a whole number from %d to %d", field.c_str(),
                  value.Dump().c_str(), low, high));
  }
  return static_cast<int>(value.AsInt());
}

Status ReadLinear(const std::string& where, const Json& json, LinearRecipe* linear) {
  if (json.is_string()) {
    ASSIGN_OR_RETURN(const Recipe row, FindRecipe(json.AsString()));
    *linear = row.linear;
    return OkStatus();
  }
  RETURN_IF_ERROR(
      CheckKeys(where, json, {"Xf", "Wf", "Gd", "Wd", "Gw", "Xw", "estW", "estX", "estMax"}));
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    const std::string name = SlotName(slot);
    const Json* quant = json.Find(name);
    if (quant == nullptr) {
      return InvalidArgumentError("recipe field " + where + "." + name +
                                  " is missing; all six slots are needed: Xf, Wf, Gd, Wd, Gw, Xw");
    }
    RETURN_IF_ERROR(
        ReadSlot(where + "." + name, slot, *quant, &linear->slots[static_cast<size_t>(i)]));
  }
  if (const Json* estimator = json.Find("estW")) {
    RETURN_IF_ERROR(ReadWeightEstimator(where + ".estW", *estimator, &linear->weight_estimator));
  }
  if (const Json* estimator = json.Find("estMax")) {
    RETURN_IF_ERROR(ReadMaxGradient(where + ".estMax", *estimator, &linear->weight_estimator));
  }
  if (const Json* estimator = json.Find("estX")) {
    RETURN_IF_ERROR(Pick(where + ".estX", *estimator, {"ste"}).status());
  }
  return OkStatus();
}

}  // namespace nibble::recipe_words
