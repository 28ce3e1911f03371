// SPDX-License-Identifier: Apache-2.0
//
// From a Quant and a group's statistic to its scale: which formula of kernels/formats serves which
// scale rule.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/cpu/group_loops.h"
#include "kernels/formats/block_scales.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"

namespace nibble::cpu {

// What a rule looks at in a group.
enum class Statistic : uint8_t { kAmax, kDeviation, kRms };
Statistic StatisticOf(ScaleRule rule);

// E8M0, E4M3 or UE5M3 scale codes belong to the rule.
bool HasScaleCodes(ScaleRule rule);
// A second-level scale belongs to the rule.
bool HasOuterScale(ScaleRule rule);
// Ties away from zero mark Quartet II's simulation, whose order of operations differs from
// Transformer Engine's (formats::QuartetTwoGroup).
bool SimulatedOrder(const Quant& quant);
// Elements become x / enc instead of x * enc.
bool DividesByEnc(const Quant& quant);

// The second level from the absolute maximum of its scope. kEden: sdec in `scale`.
formats::OuterScale OuterScaleOf(const Quant& quant, float amax);

// The scale of one group; `mapped` is the element value its amax goes to (ElemMax without
// alternatives), `word` the random word of a stochastic scale, `previous_enc` what a zero group of
// rule p2 keeps.
formats::GroupScale GroupScaleOf(const Quant& quant, double statistic,
                                 const formats::OuterScale& outer, float mapped, uint32_t word,
                                 float previous_enc);

// Decoding of one group of a quantized tensor.
RunDecoder DecoderOf(const QuantizedTensor& x, int64_t group, int64_t outer);
// The same from its parts.
RunDecoder DecoderOf(ScaleRule rule, bool has_group_scale, const formats::GroupScale& group,
                     float outer, float divisor);

// enc of one per-tensor group under a rule with a window; reads and advances the history.
float WindowedEnc(const Quant& quant, float amax, AmaxHistory* history);

// The outer amax that serves this call: `amax`, or the one measured up to quant.hold - 1 updates
// ago. An amax of 0 or that is not finite serves and is not held. Reads and advances the history.
float HeldAmax(const Quant& quant, const QuantizeContext& context, float amax);

// INVALID_ARGUMENT names the combination of axes that has no meaning.
Status CheckGroupQuant(const Quant& quant, const QuantizeContext& context);

}  // namespace nibble::cpu
