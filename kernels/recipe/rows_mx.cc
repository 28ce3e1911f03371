// SPDX-License-Identifier: Apache-2.0
//
// Rows whose E2M1 operands have an E8M0 scale per 32.
#include "kernels/recipe/built_in.h"

namespace nibble::recipe_rows {
namespace {

constexpr Row kRows[] = {
    {"mxfp4_plain", R"j({"name":"mxfp4_plain",
      "summary":"MXFP4 of the OCP specification in all three GEMMs, nothing else.",
      "linear":{"Xf":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Wf":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Gd":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Wd":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Gw":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Xw":{"elem":"e2m1","block":"1x32","scale":"e8f"}}})j"},
    {"mxfp4_nv", R"j({"name":"mxfp4_nv",
      "summary":"MXFP4 as NVIDIA compared it: scales up, stochastic gradients, rotated wgrad.",
      "linear":{"Xf":{"elem":"e2m1","block":"1x32","scale":"e8u(6)"},
                "Wf":{"elem":"e2m1","block":"1x32","scale":"e8u(6)"},
                "Gd":{"elem":"e2m1","block":"1x32","scale":"e8u(6)","round":"te8"},
                "Wd":{"elem":"e2m1","block":"1x32","scale":"e8u(6)"},
                "Gw":{"elem":"e2m1","block":"1x32","scale":"e8u(6)","round":"te8","xform":"R32"},
                "Xw":{"elem":"e2m1","block":"1x32","scale":"e8u(6)","xform":"R32"}},
      "bf16_blocks":{"last_share":0.15}})j"},
    {"mxfp4_tseng", R"j({"name":"mxfp4_tseng",
      "summary":"MXFP4 backward on rotated 3/4 values with stochastic rounding (arXiv 2502.20586).",
      "linear":{
        "Xf":{"elem":"bf16"},"Wf":{"elem":"bf16"},
        "Gd":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32"},
        "Wd":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32"},
        "Gw":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32"},
        "Xw":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32"}}})j"},
    {"mxfp4_amd", R"j({"name":"mxfp4_amd",
      "summary":"MXFP4 with a deterministic Hadamard in wgrad, rounding to nearest (2605.09825).",
      "linear":{"Xf":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Wf":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Gd":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Wd":{"elem":"e2m1","block":"1x32","scale":"e8f"},
                "Gw":{"elem":"e2m1","block":"1x32","scale":"e8f","xform":"H32"},
                "Xw":{"elem":"e2m1","block":"1x32","scale":"e8f","xform":"H32"}}})j"},
    {"quartet", R"j({"name":"quartet",
      "summary":"Quartet v4 (arXiv 2505.14669): rotated MXFP4 everywhere, clip mask.",
      "linear":{
        "Xf":{"elem":"e2m1","block":"1x32","scale":"qst","xform":"H32","mask":"lt6"},
        "Wf":{"elem":"e2m1","block":"1x32","scale":"qst","xform":"H32","mask":"lt6"},
        "Gd":{"elem":"e2m1","block":"1x32","scale":"a34","xform":"R32"},
        "Wd":{"elem":"e2m1","block":"1x32","scale":"a34","xform":"R32","source":"requant"},
        "Gw":{"elem":"e2m1","block":"1x32","scale":"a34","xform":"R32"},
        "Xw":{"elem":"e2m1","block":"1x32","scale":"a34","xform":"R32","source":"requant"}}})j"},
    {"quartet_v1", R"j({"name":"quartet_v1",
      "summary":"Quartet v1 (arXiv 2505.14669): as quartet, the backward rounded stochastically.",
      "linear":{
        "Xf":{"elem":"e2m1","block":"1x32","scale":"qst","xform":"H32","mask":"lt6"},
        "Wf":{"elem":"e2m1","block":"1x32","scale":"qst","xform":"H32","mask":"lt6"},
        "Gd":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32"},
        "Wd":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32",
              "source":"requant"},
        "Gw":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32"},
        "Xw":{"elem":"e2m1","block":"1x32","scale":"a34","round":"sr24","xform":"R32",
              "source":"requant"}}})j"},
};

}  // namespace

std::span<const Row> Microscaled() { return kRows; }

}  // namespace nibble::recipe_rows
