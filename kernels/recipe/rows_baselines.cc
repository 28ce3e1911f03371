// SPDX-License-Identifier: Apache-2.0
//
// Rows without FP4: fp32, bf16 and the FP8 methods.
#include "kernels/recipe/built_in.h"

namespace nibble::recipe_rows {
namespace {

constexpr Row kRows[] = {
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
    {"te_fp8_delayed", R"j({"name":"te_fp8_delayed",
      "summary":"FP8 with delayed scaling: one scale per tensor from the last 1024 steps.",
      "linear":{"Xf":{"elem":"e4m3","block":"tensor","scale":"dly(448)","window":1024},
                "Wf":{"elem":"e4m3","block":"tensor","scale":"dly(448)","window":1024},
                "Gd":{"elem":"e5m2","block":"tensor","scale":"dly(57344)","window":1024},
                "Wd":{"source":"reuse"},"Gw":{"source":"reuse"},"Xw":{"source":"reuse"}}})j"},
    {"te_fp8_block", R"j({"name":"te_fp8_block",
      "summary":"FP8 in blocks: E4M3, 1x128 for activations and gradients, 128x128 for weights.",
      "linear":{"Xf":{"elem":"e4m3","block":"1x128","scale":"cur(448,p2)"},
                "Wf":{"elem":"e4m3","block":"128x128","scale":"cur(448,p2)"},
                "Gd":{"elem":"e4m3","block":"1x128","scale":"cur(448,p2)"},
                "Wd":{"source":"reuse"},
                "Gw":{"elem":"e4m3","block":"1x128","scale":"cur(448,p2)"},
                "Xw":{"elem":"e4m3","block":"1x128","scale":"cur(448,p2)"}}})j"},
    {"te_mxfp8", R"j({"name":"te_mxfp8",
      "summary":"MXFP8: E4M3 with an E8M0 scale, rounded up, per 32 along each contraction.",
      "linear":{"Xf":{"elem":"e4m3","block":"1x32","scale":"e8u(448)"},
                "Wf":{"elem":"e4m3","block":"1x32","scale":"e8u(448)"},
                "Gd":{"elem":"e4m3","block":"1x32","scale":"e8u(448)"},
                "Wd":{"elem":"e4m3","block":"1x32","scale":"e8u(448)"},
                "Gw":{"elem":"e4m3","block":"1x32","scale":"e8u(448)"},
                "Xw":{"elem":"e4m3","block":"1x32","scale":"e8u(448)"}}})j"},
    {"fp8_lm", R"j({"name":"fp8_lm",
      "summary":"FP8-LM (arXiv 2310.18313): power-of-two scales, FP8 optimizer and gradients.",
      "linear":{"Xf":{"elem":"e4m3","block":"tensor","scale":"p2(448)","window":16},
                "Wf":{"elem":"e4m3","block":"tensor","scale":"p2(448)"},
                "Gd":{"elem":"e5m2","block":"tensor","scale":"p2(57344)","window":16},
                "Wd":{"source":"reuse"},"Gw":{"source":"reuse"},"Xw":{"source":"reuse"}},
      "state":{"m":"e4m3","v":"fp16","master":"fp16"},"comm":"e4m3_presum"})j"},
    {"mor", R"j({"name":"mor",
      "summary":"FP8 per tensor, BF16 where the rounding error is large (arXiv 2512.22804).",
      "linear":{
        "Xf":{"elem":"e4m3","block":"tensor","scale":"cur(448)","fallback_error":0.045},
        "Wf":{"elem":"e4m3","block":"tensor","scale":"cur(448)","fallback_error":0.045},
        "Gd":{"elem":"e4m3","block":"tensor","scale":"cur(448)","fallback_error":0.045},
        "Wd":{"source":"reuse"},"Gw":{"source":"reuse"},"Xw":{"source":"reuse"}}})j"},
};

}  // namespace

std::span<const Row> Baselines() { return kRows; }

}  // namespace nibble::recipe_rows
