// SPDX-License-Identifier: Apache-2.0
//
// Quantize, QuantizeRotated and Dequantize for small scale groups; kernels: group_tiles.cuh, and
// group_kernels.cuh for blocks BxB and groups of other sizes.
#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/group_kernels.cuh"
#include "kernels/cuda/group_tiles.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/rotation.h"

namespace nibble::cuda {
namespace {

Status CheckAxes(const Quant& quant, const QuantizeContext& context, int64_t cols) {
  RETURN_IF_ERROR(CheckGroupQuant(quant, context));
  const bool elem =
      quant.elem == Elem::kE2M1 || quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2;
  const bool turned = context.contraction == Axis::kRows && quant.block == Block::kGroup;
  // Two codes of E2M1 share a byte, which belongs to one thread.
  const bool pairs =
      quant.elem != Elem::kE2M1 || turned || quant.group % 2 == 0 || quant.group >= cols;
  const bool plain = quant.mask != Mask::kTrust && quant.split == Split::kNone &&
                     !quant.recast_e4m3 && quant.fallback_error == 0 && quant.smooth_max == 0 &&
                     !quant.pre.enabled && context.replay == nullptr;
  if (elem && pairs && plain) return OkStatus();
  return UnimplementedError(StrFormat(
      "Quantize: by groups the CUDA backend builds e2m1, e4m3 and e5m2 without outliers, recasts, "
      "fallbacks, trust masks or odd groups of e2m1, not %s in blocks %s; use backend cpu for this "
      "recipe",
      ElemName(quant.elem).c_str(), BlockName(quant.block, quant.group).c_str()));
}

dim3 CellGrid(const GroupLayout& layout) {
  if (!layout.turned) return dim3(GridFor(layout.lines * layout.per_line));
  return dim3(static_cast<unsigned>((layout.lines + kThreads - 1) / kThreads),
              GridForRows(layout.per_line));
}

void Describe(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
              QuantizedTensor* out) {
  out->rows = x.rows;
  out->cols = x.cols;
  out->elem = quant.elem;
  out->block = quant.block;
  out->group = quant.group;
  out->contraction = context.contraction;
  out->scale = quant.scale;
  out->comp = OccComp::kNone;
  out->folded = false;
  out->outer = quant.outer;
  // A constant of the rule.
  out->outer_divisor =
      HasScaleCodes(quant.scale) ? OuterScaleOf(GroupRuleOf(quant), 1.0f).divisor : 1.0f;
  out->has_group_scale = HasScaleCodes(quant.scale);
  out->has_codes = context.keep_codes;
  out->has_mask = quant.mask != Mask::kNone;
  out->recast_enc = 0;
}

}  // namespace

Status CudaBackend::PrepareGroups(const Quant& quant, const QuantizeContext& context,
                                  ConstTensorView x, bool in_tiles, QuantizedTensor* out,
                                  GroupTask* task) {
  Describe(quant, context, x, out);
  RETURN_IF_ERROR(StartCounting(out));
  *task = GroupTaskOf(quant, context, x, *out);
  const int64_t groups = task->groups;
  RETURN_IF_ERROR(out->enc.Reserve(*this, groups * 4));
  task->enc = static_cast<float*>(out->enc.data());
  task->nonfinite = &static_cast<QuantizeCounters*>(out->counters.data())->nonfinite_amax;
  if (out->has_group_scale) {
    RETURN_IF_ERROR(out->group_scale.Reserve(*this, groups * 4));
    RETURN_IF_ERROR(out->scale_codes.Reserve(*this, groups));
    RETURN_IF_ERROR(out->outer_scale.Reserve(*this, out->outer_count() * 4));
    task->group_scale = static_cast<float*>(out->group_scale.data());
    task->scale_codes = static_cast<uint8_t*>(out->scale_codes.data());
    task->outer_scale = static_cast<float*>(out->outer_scale.data());
  }
  if (out->has_codes) {
    RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
    task->codes = static_cast<uint8_t*>(out->codes.data());
  }
  if (out->has_mask) {
    RETURN_IF_ERROR(out->mask.Reserve(*this, x.size()));
    task->mask = static_cast<uint8_t*>(out->mask.data());
  }
  // Maxima of groups and of outer scopes, as far as they are not found within a tile, and the
  // largest corrected scale: zeros to begin with.
  const int64_t maxima = in_tiles ? 0 : groups;
  const bool outer = HasOuterScale(quant.scale) && !(in_tiles && quant.outer == Outer::k128);
  const int64_t outers = outer ? out->outer_count() : 0;
  const int64_t words = maxima + outers + 1;
  RETURN_IF_ERROR(group_amax_.Reserve(*this, words * 4));
  task->amax = static_cast<uint32_t*>(group_amax_.data());
  task->outer_amax = outers > 0 ? task->amax + maxima : nullptr;
  task->largest = task->amax + maxima + outers;
  const bool eden = quant.scale == ScaleRule::kEden;
  if ((StatisticOf(quant.scale) == Statistic::kDeviation && !in_tiles) || eden) {
    RETURN_IF_ERROR(group_sums_.Reserve(*this, groups * 16));
    auto* const sums = static_cast<double*>(group_sums_.data());
    (eden ? task->sums : task->statistics) = sums;
  }
  RETURN_IF_ERROR(CudaStatus(
      cudaMemsetAsync(task->amax, 0, static_cast<size_t>(words) * 4, stream_), "Quantize"));
  return CudaStatus(cudaMemsetAsync(out->counters.data(), 0, sizeof(QuantizeCounters), stream_),
                    "Quantize");
}

// A held amax is host state: its first measurement waits, those it serves do not.
Status CudaBackend::HoldAmax(const Quant& quant, const QuantizeContext& context, GroupTask* task) {
  const bool held = quant.hold > 1 && context.history != nullptr && context.completed >= 0 &&
                    task->outer_amax != nullptr && quant.outer == Outer::kTensor;
  if (!held) return OkStatus();
  float amax = 0;
  if (!HoldsAmax(quant, context)) {
    RETURN_IF_ERROR(CopyOut(&amax, task->outer_amax, sizeof(amax)));
  }
  task->held_amax = HeldAmax(quant, context, amax);
  return OkStatus();
}

Status CudaBackend::CorrectScales(const GroupTask& task) {
  const int64_t corrections =
      task.layout.lines * ((task.layout.per_line + task.together - 1) / task.together);
  EdenCorrectKernel<<<GridFor(corrections), kThreads, 0, stream_>>>(task);
  RETURN_IF_ERROR(LaunchStatus("Quantize"));
  EdenFinishKernel<<<GridFor(task.groups), kThreads, 0, stream_>>>(task);
  return LaunchStatus("Quantize");
}

// Measured, scaled and encoded one after another.
Status CudaBackend::QuantizeInCells(const Quant& quant, const QuantizeContext& context,
                                    GroupTask task) {
  GroupMeasureKernel<<<CellGrid(task.layout), kThreads, 0, stream_>>>(task);
  RETURN_IF_ERROR(LaunchStatus("Quantize"));
  RETURN_IF_ERROR(HoldAmax(quant, context, &task));
  GroupScalesKernel<<<GridFor(task.groups), kThreads, 0, stream_>>>(task);
  RETURN_IF_ERROR(LaunchStatus("Quantize"));
  GroupEncodeKernel<<<CellGrid(task.layout), kThreads, 0, stream_>>>(task);
  return LaunchStatus("Quantize");
}

// Together, after one look at the tensor where a scale needs it and no earlier one serves.
Status CudaBackend::QuantizeInTiles(const Quant& quant, const QuantizeContext& context,
                                    int rotation, const GroupTask& group) {
  TileTask task = TileTaskOf(group, quant, context, rotation,
                             [&](int i) { return IsNegative(quant.rotation, context, i); });
  const int64_t tiles = TileCount(group.layout);
  if (LooksAtTensor(quant)) {
    if (!HoldsAmax(quant, context))
      MeasureTilesKernel<<<GridForRows(tiles), kThreads, 0, stream_>>>(task);
    RETURN_IF_ERROR(LaunchStatus("Quantize"));
    RETURN_IF_ERROR(HoldAmax(quant, context, &task.group));
  }
  QuantizeTilesKernel<<<static_cast<unsigned>(tiles), kThreads, 0, stream_>>>(task);
  return LaunchStatus("Quantize");
}

bool CudaBackend::RotatesInTiles(const Quant& quant) {
  return CudaQuantizesInTiles(quant, quant.rotation.size);
}

Status CudaBackend::QuantizeRotated(const Quant& quant, const QuantizeContext& context,
                                    ConstTensorView x, TensorView rotated, QuantizedTensor* out,
                                    TensorView decoded) {
  RETURN_IF_ERROR(CheckRotation(quant.rotation, context, x.rows, x.cols));
  if (!RotatesInTiles(quant)) {
    return Backend::QuantizeRotated(quant, context, x, rotated, out, decoded);
  }
  return QuantizeGroups(quant, context, x, quant.rotation.size, out, decoded);
}

Status CudaBackend::QuantizeGroups(const Quant& quant, const QuantizeContext& context,
                                   ConstTensorView x, int rotation, QuantizedTensor* out,
                                   TensorView decoded) {
  const DType type = x.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  RETURN_IF_ERROR(CheckView("Quantize", "x", x, x.rows, x.cols, type));
  RETURN_IF_ERROR(CheckAxes(quant, context, x.cols));
  if (decoded.data != nullptr) {
    RETURN_IF_ERROR(CheckView("Quantize", "decoded", decoded, x.rows, x.cols));
  }
  const bool in_tiles = CudaQuantizesInTiles(quant, rotation);
  GroupTask task{};
  RETURN_IF_ERROR(PrepareGroups(quant, context, x, in_tiles, out, &task));
  if (x.size() == 0) return OkStatus();
  const bool eden = quant.scale == ScaleRule::kEden;
  // Corrected scales decode what rests in memory.
  if (eden && decoded.data != nullptr && task.codes == nullptr) {
    RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
    task.codes = static_cast<uint8_t*>(out->codes.data());
  }
  task.decoded = decoded.data == nullptr || eden ? nullptr : decoded.f32();
  RETURN_IF_ERROR(in_tiles ? QuantizeInTiles(quant, context, rotation, task)
                           : QuantizeInCells(quant, context, task));
  if (!eden) return OkStatus();
  RETURN_IF_ERROR(CorrectScales(task));
  if (decoded.data == nullptr) return OkStatus();
  return ForEach(stream_, "Quantize", decoded.size(),
                 DecodeGroupsOp{StoredGroupsOf(*out), decoded.f32()});
}

Status CudaBackend::DequantizeGroups(const QuantizedTensor& x, TensorView decoded) {
  return ForEach(stream_, "Dequantize", decoded.size(),
                 DecodeGroupsOp{StoredGroupsOf(x), decoded.f32()});
}

}  // namespace nibble::cuda
