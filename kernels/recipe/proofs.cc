// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/proofs.h"

#include <algorithm>

namespace nibble {
namespace {

// Blocks enough for every override and kept block of a recipe to have a place of its own.
constexpr int kBlocks = 64;

void AddOnce(const std::string& proof, std::vector<std::string>* proofs) {
  if (std::find(proofs->begin(), proofs->end(), proof) == proofs->end()) proofs->push_back(proof);
}

// The built-in recipe with such layers whose proof asks for the least beyond them; "" for none.
std::string BuiltInWith(const LinearRecipe& linear) {
  std::string best;
  size_t fewest = 0;
  for (const std::string& name : BuiltInRecipeNames()) {
    const std::vector<LinearRecipe> layers = LinearRecipesOf(*FindRecipe(name));
    if (std::find(layers.begin(), layers.end(), linear) == layers.end()) continue;
    if (best.empty() || layers.size() < fewest) {
      best = name;
      fewest = layers.size();
    }
  }
  return best;
}

void AddParts(const LinearRecipe& linear, std::vector<std::string>* proofs) {
  for (const Quant& quant : linear.slots) {
    if (quant.elem == Elem::kE2M1) AddOnce("e2m1", proofs);
    if (quant.elem == Elem::kE4M3) AddOnce("e4m3", proofs);
    if (quant.elem == Elem::kE5M2) AddOnce("e5m2", proofs);
    if (quant.stochastic()) AddOnce("sr24", proofs);
    if (quant.pre.enabled) AddOnce("occ", proofs);
  }
  if (linear.weight_estimator.dge()) AddOnce("dge", proofs);
  AddOnce("gemm.fp32", proofs);
}

}  // namespace

std::vector<LinearRecipe> LinearRecipesOf(const Recipe& recipe) {
  std::vector<LinearRecipe> found;
  for (int stage = -1; stage < static_cast<int>(recipe.stages.size()); ++stage) {
    for (int block = 0; block < kBlocks; ++block) {
      for (int kind = 0; kind < kLinearKinds; ++kind) {
        const LinearRecipe& linear =
            recipe.LinearFor(static_cast<LinearKind>(kind), block, kBlocks, stage);
        if (std::find(found.begin(), found.end(), linear) == found.end()) found.push_back(linear);
      }
    }
  }
  return found;
}

std::vector<std::string> RequiredProofs(const Recipe& recipe) {
  std::vector<std::string> proofs;
  const Result<Recipe> built_in = FindRecipe(recipe.name);
  if (built_in.ok() && *built_in == recipe) {
    proofs.push_back(kRecipeProof + recipe.name);
  } else {
    for (const LinearRecipe& linear : LinearRecipesOf(recipe)) {
      const std::string name = BuiltInWith(linear);
      if (name.empty()) {
        AddParts(linear, &proofs);
      } else {
        AddOnce(kRecipeProof + name, &proofs);
      }
    }
  }
  if (!(recipe.state == StatePrecision{})) proofs.emplace_back(kStateProof);
  if (recipe.communication == Communication::kE4M3) proofs.emplace_back(kWireProof);
  if (recipe.weight_rule.enabled) proofs.emplace_back(kWeightRuleProof);
  return proofs;
}

}  // namespace nibble
