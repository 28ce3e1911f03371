// SPDX-License-Identifier: Apache-2.0
//
// The built-in rows, as the same JSON a user would write.
#include <array>
#include <string>
#include <string_view>

#include "base/strings.h"
#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

struct Row {
  std::string_view name;
  std::string_view json;
};

constexpr std::array<Row, 5> kRows = {{
    {"fp32", R"j({"name":"fp32",
      "summary":"Every operand in FP32: the numerical reference.",
      "linear":{"Xf":{"elem":"fp32"},"Wf":{"elem":"fp32"},"Gd":{"elem":"fp32"},
                "Wd":{"elem":"fp32"},"Gw":{"elem":"fp32"},"Xw":{"elem":"fp32"}}})j"},
    {"bf16", R"j({"name":"bf16",
      "summary":"Operands rounded to BF16, sums in FP32: the usual training baseline.",
      "linear":{"Xf":{"elem":"bf16"},"Wf":{"elem":"bf16"},"Gd":{"elem":"bf16"},
                "Wd":{"elem":"bf16"},"Gw":{"elem":"bf16"},"Xw":{"elem":"bf16"}}})j"},
    {"te_fp8_current", R"j({"name":"te_fp8_current",
      "summary":"FP8 baseline: E4M3 forward, E5M2 gradients, one current scale per tensor.",
      "linear":{"Xf":{"elem":"e4m3","block":"tensor","scale":"cur(448)"},
                "Wf":{"elem":"e4m3","block":"tensor","scale":"cur(448)"},
                "Gd":{"elem":"e5m2","block":"tensor","scale":"cur(57344)"},
                "Wd":{"source":"reuse"},"Gw":{"source":"reuse"},"Xw":{"source":"reuse"},
                "estW":"ste","estX":"ste"}})j"},
    {"fp4_direct", R"j({"name":"fp4_direct",
      "summary":"FP4 ablation: E2M1 forward operands, no clamping, straight-through gradient.",
      "linear":{"Xf":{"elem":"e2m1","block":"tok","scale":"f32(6)"},
                "Wf":{"elem":"e2m1","block":"och","scale":"f32(6)"},
                "Gd":{"elem":"e5m2","block":"tensor","scale":"p2(57344)"},
                "Wd":{"source":"reuse"},"Gw":{"source":"reuse"},"Xw":{"source":"reuse"},
                "estW":"ste","estX":"ste"}})j"},
    {"fp4_ms_paper", R"j({"name":"fp4_ms_paper",
      "summary":"FP4 as published (arXiv 2501.17116): clamped and compensated E2M1, DGE gradient.",
      "linear":{"Xf":{"elem":"e2m1","block":"tok","scale":"f32(6)",
                      "pre":{"occ":{"alpha":0.99,"scope":"tensor","comp":"e4m3"}}},
                "Wf":{"elem":"e2m1","block":"och","scale":"f32(6)"},
                "Gd":{"elem":"e5m2","block":"tensor","scale":"p2(57344)"},
                "Wd":{"source":"reuse"},"Gw":{"source":"reuse"},"Xw":{"source":"reuse"},
                "estW":{"dge":{"k":5,"clip":3.0,"outside":0}},"estX":"ste"}})j"},
}};

}  // namespace

std::vector<std::string> BuiltInRecipeNames() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

Result<Recipe> FindRecipe(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return ParseRecipeText(row.json);
  }
  return NotFoundError(UnknownNameMessage("recipe", name, BuiltInRecipeNames()));
}

}  // namespace nibble
