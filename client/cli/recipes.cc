// SPDX-License-Identifier: Apache-2.0
//
// nibble recipes: built-in rows and files of one's own, without a controller.
#include "client/cli/commands.h"
#include "client/cli/table.h"
#include "client/lib/proto_json.h"
#include "kernels/recipe/recipe.h"
#include "kernels/recipe/yaml/yaml_json.h"

namespace nibble::cli {
namespace {

// "fp4", or "fp8 (not native FP4)" for a GEMM of 4-bit operands that does not run on them.
Json PrecisionJson(const GemmPrecision& precision) {
  return Json::Object({{"precision", PrecisionClassName(precision.result)},
                       {"nativeFp4", precision.native_fp4},
                       {"reason", precision.reason}});
}

Json LinesJson(const std::vector<std::string>& lines) {
  Json list = Json::Array();
  for (const std::string& line : lines) list.Append(line);
  return list;
}

// The recipe with what it means. Sizes are not known here, so warnings that need them are left out.
Json ReportJson(const Recipe& recipe) {
  const RecipePrecision precision = PrecisionOf(recipe.linear);
  return Json::Object({{"recipe", RecipeToJson(recipe)},
                       {"meaning", LinesJson(DescribeRecipe(recipe))},
                       {"gemms", Json::Object({{"fprop", PrecisionJson(precision.fprop)},
                                               {"dgrad", PrecisionJson(precision.dgrad)},
                                               {"wgrad", PrecisionJson(precision.wgrad)}})},
                       {"warnings", LinesJson(RecipeWarnings(recipe, 0, 0))}});
}

void PrintMeaning(CliContext& context, const Recipe& recipe) {
  for (const std::string& line : DescribeRecipe(recipe)) context.out << "  " << line << "\n";
  for (const std::string& warning : RecipeWarnings(recipe, 0, 0)) {
    context.Note("warning: " + warning);
  }
}

int List(CliContext& context) {
  Json rows = Json::Array();
  Table table({"NAME", "FPROP", "DGRAD", "WGRAD", "SUMMARY"});
  for (const std::string& name : BuiltInRecipeNames()) {
    const Result<Recipe> recipe = FindRecipe(name);
    if (!recipe.ok()) return context.Fail(recipe.status());
    const RecipePrecision p = PrecisionOf(recipe->linear);
    const char* classes[] = {PrecisionClassName(p.fprop.result), PrecisionClassName(p.dgrad.result),
                             PrecisionClassName(p.wgrad.result)};
    table.AddRow({name, classes[0], classes[1], classes[2], recipe->summary});
    rows.Append(Json::Object({{"name", name},
                              {"fprop", classes[0]},
                              {"dgrad", classes[1]},
                              {"wgrad", classes[2]},
                              {"summary", recipe->summary}}));
    if (context.output == OutputFormat::kName) context.out << name << "\n";
  }
  if (context.output == OutputFormat::kName || context.PrintStructured(rows)) return kExitOk;
  table.Print(context.out, context.headers);
  return kExitOk;
}

int Show(CliContext& context, const Recipe& recipe) {
  if (context.output == OutputFormat::kName) {
    context.out << recipe.name << "\n";
  } else if (!context.PrintStructured(RecipeToJson(recipe))) {  // as a file to start from
    context.out << recipe.name << ": " << recipe.summary << "\n";
    PrintMeaning(context, recipe);
  }
  context.out.flush();
  return kExitOk;
}

// A file rather than a row's name.
bool IsPath(const std::string& target) {
  return target.find('/') != std::string::npos || target == "-" || target.ends_with(".yaml") ||
         target.ends_with(".yml") || target.ends_with(".json");
}

int Validate(CliContext& context, const std::string& path) {
  const Result<Recipe> recipe = ReadRecipeFile(path);
  if (!recipe.ok()) return context.FailSpec(recipe.status());
  if (context.output == OutputFormat::kName) {
    context.out << recipe->name << "\n";
  } else if (!context.PrintStructured(ReportJson(*recipe))) {
    context.out << path << ": recipe '" << recipe->name << "' is valid\n";
    PrintMeaning(context, *recipe);
  }
  context.out.flush();
  return kExitOk;
}

}  // namespace

int RunRecipes(CliContext& context, const RecipesOptions& options) {
  if (options.json) context.output = OutputFormat::kJson;
  const bool list = options.action == "list";
  if (list != options.target.empty()) {
    context.Note(list ? "recipes list takes no name"
                      : "recipes " + options.action + " needs a " +
                            (options.action == "show" ? "name" : "file"));
    return kExitUsage;
  }
  if (list) return List(context);
  if (options.action == "validate") return Validate(context, options.target);
  const bool file = IsPath(options.target);
  const Result<Recipe> recipe = file ? ReadRecipeFile(options.target) : FindRecipe(options.target);
  if (file && !recipe.ok()) return context.FailSpec(recipe.status());
  return recipe.ok() ? Show(context, *recipe) : context.Fail(recipe.status());
}

}  // namespace nibble::cli
