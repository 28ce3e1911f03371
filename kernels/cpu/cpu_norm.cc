// SPDX-License-Identifier: Apache-2.0
//
// Embedding, RMSNorm and rotary position embedding.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/strings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_math.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kRowGrain = 32;     // rows per chunk of row-wise operations
constexpr int64_t kColumnGrain = 64;  // columns per chunk of the embedding gradient

NIBBLE_LOOP float SumSquares(const float* x, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * x[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += x[i] * x[i];
  return FoldLanes(lanes);
}

NIBBLE_LOOP void NormRow(const float* x, const float* weight, float rstd, float* out, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] * rstd) * weight[i];
}

// sum of dout * weight * x.
NIBBLE_LOOP float WeightedDot(const float* dout, const float* weight, const float* x, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += (dout[i + l] * weight[i + l]) * x[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += (dout[i] * weight[i]) * x[i];
  return FoldLanes(lanes);
}

// dx = rstd * (dout * weight - x * projection), dweight += dout * x * rstd.
NIBBLE_LOOP void NormRowBackward(const float* dout, const float* x, const float* weight, float rstd,
                                 float projection, bool accumulate, float* dx, float* dweight,
                                 int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float g = dout[i];
    const float value = rstd * (g * weight[i] - x[i] * projection);
    dweight[i] += g * (x[i] * rstd);
    dx[i] = accumulate ? dx[i] + value : value;
  }
}

NIBBLE_LOOP void AddInto(const float* x, float* y, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

// Rotates pairs (i, i + half) of one head by the angles of one position; sign -1 turns back.
NIBBLE_LOOP void RotateHead(float* x, const float* cosine, const float* sine, float sign,
                            int64_t half) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i];
    const float second = x[i + half];
    const float s = sign * sine[i];
    x[i] = first * cosine[i] - second * s;
    x[i + half] = second * cosine[i] + first * s;
  }
}

}  // namespace

Status CpuBackend::EmbeddingForward(ConstTensorView table, ConstTensorView ids, TensorView out) {
  const int64_t width = table.cols;
  RETURN_IF_ERROR(CheckSameSize("EmbeddingForward", "ids", ids, out.rows, DType::kI32));
  RETURN_IF_ERROR(CheckView("EmbeddingForward", "table", table, table.rows, width));
  RETURN_IF_ERROR(CheckView("EmbeddingForward", "out", out, out.rows, width));
  for (int64_t t = 0; t < out.rows; ++t) {
    const int64_t id = ids.i32()[t];
    if (id < 0 || id >= table.rows) {
      return OutOfRangeError(StrFormat(
          "EmbeddingForward: token %lld at position %lld is outside the vocabulary of %lld",
          static_cast<long long>(id), static_cast<long long>(t),
          static_cast<long long>(table.rows)));
    }
  }
  pool_.RunRanges(out.rows, kRowGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      std::memcpy(out.f32() + t * width, table.f32() + ids.i32()[t] * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
  });
  return OkStatus();
}

Status CpuBackend::EmbeddingBackward(ConstTensorView ids, ConstTensorView dout, TensorView dtable) {
  const int64_t width = dtable.cols;
  RETURN_IF_ERROR(CheckSameSize("EmbeddingBackward", "ids", ids, dout.rows, DType::kI32));
  RETURN_IF_ERROR(CheckView("EmbeddingBackward", "dout", dout, dout.rows, width));
  RETURN_IF_ERROR(CheckView("EmbeddingBackward", "dtable", dtable, dtable.rows, width));
  for (int64_t t = 0; t < dout.rows; ++t) {
    if (ids.i32()[t] < 0 || ids.i32()[t] >= dtable.rows) {
      return OutOfRangeError(StrFormat(
          "EmbeddingBackward: token %d at position %lld is outside the vocabulary of %lld",
          ids.i32()[t], static_cast<long long>(t), static_cast<long long>(dtable.rows)));
    }
  }
  // Columns are split, not tokens: each sum then runs in ascending token order.
  pool_.RunRanges(width, kColumnGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t t = 0; t < dout.rows; ++t) {
      Cloned<AddInto>(dout.f32() + t * width + first, dtable.f32() + ids.i32()[t] * width + first,
                      last - first);
    }
  });
  return OkStatus();
}

Status CpuBackend::RmsNormForward(ConstTensorView x, ConstTensorView weight, float epsilon,
                                  TensorView out, TensorView rstd) {
  const int64_t rows = x.rows;
  const int64_t width = x.cols;
  RETURN_IF_ERROR(CheckView("RmsNormForward", "x", x, rows, width));
  RETURN_IF_ERROR(CheckView("RmsNormForward", "out", out, rows, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormForward", "weight", weight, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormForward", "rstd", rstd, rows));
  pool_.RunRanges(rows, kRowGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      const float* row = x.f32() + t * width;
      const float mean = Cloned<SumSquares>(row, width) / static_cast<float>(width);
      const float scale = 1.0f / std::sqrt(mean + epsilon);
      rstd.f32()[t] = scale;
      Cloned<NormRow>(row, weight.f32(), scale, out.f32() + t * width, width);
    }
  });
  return OkStatus();
}

Status CpuBackend::RmsNormBackward(ConstTensorView dout, ConstTensorView x, ConstTensorView weight,
                                   ConstTensorView rstd, TensorView dx, bool accumulate_dx,
                                   TensorView dweight) {
  const int64_t rows = x.rows;
  const int64_t width = x.cols;
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "x", x, rows, width));
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "dout", dout, rows, width));
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "dx", dx, rows, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "weight", weight, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "rstd", rstd, rows));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "dweight", dweight, width));
  const int64_t chunks = (rows + kRowGrain - 1) / kRowGrain;
  ASSIGN_OR_RETURN(float* partials, Workspace(norm_partials_, chunks * width));
  pool_.RunRanges(rows, kRowGrain, [&](int64_t first, int64_t last, int) {
    float* partial = partials + first / kRowGrain * width;
    std::fill(partial, partial + width, 0.0f);
    for (int64_t t = first; t < last; ++t) {
      const float* g = dout.f32() + t * width;
      const float* row = x.f32() + t * width;
      const float scale = rstd.f32()[t];
      const float dot = Cloned<WeightedDot>(g, weight.f32(), row, width);
      const float projection = dot * scale * scale / static_cast<float>(width);
      Cloned<NormRowBackward>(g, row, weight.f32(), scale, projection, accumulate_dx,
                              dx.f32() + t * width, partial, width);
    }
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Cloned<AddInto>(partials + chunk * width, dweight.f32(), width);
  }
  return OkStatus();
}

Result<const float*> CpuBackend::RopeTable(const RopeParams& params, int64_t positions) {
  const int64_t half = params.head_dim / 2;
  const bool same = rope_head_dim_ == params.head_dim && rope_theta_ == params.theta;
  if (same && positions <= rope_positions_) return static_cast<const float*>(rope_table_.data());
  rope_positions_ = 0;
  ASSIGN_OR_RETURN(float* table, Workspace(rope_table_, positions * params.head_dim));
  pool_.RunRanges(positions, kRowGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t position = first; position < last; ++position) {
      for (int64_t i = 0; i < half; ++i) {
        const double exponent =
            -2.0 * static_cast<double>(i) / static_cast<double>(params.head_dim);
        const double angle = static_cast<double>(position) * std::pow(params.theta, exponent);
        table[position * params.head_dim + i] = static_cast<float>(std::cos(angle));
        table[position * params.head_dim + half + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
  rope_positions_ = positions;
  rope_head_dim_ = params.head_dim;
  rope_theta_ = params.theta;
  return table;
}

Status CpuBackend::Rope(const RopeParams& params, TensorView x, bool inverse) {
  if (params.head_dim <= 0 || params.head_dim % 2 != 0 || params.position_offset < 0 ||
      !(params.theta > 0)) {
    return InvalidArgumentError(StrFormat(
        "Rope: head_dim %lld, position_offset %lld, theta %g; head_dim must be even and positive, "
        "the offset at least 0, theta above 0",
        static_cast<long long>(params.head_dim), static_cast<long long>(params.position_offset),
        params.theta));
  }
  const int64_t width = params.heads * params.head_dim;
  const int64_t half = params.head_dim / 2;
  RETURN_IF_ERROR(CheckView("Rope", "x", x, params.batch * params.seq, width));
  ASSIGN_OR_RETURN(const float* table, RopeTable(params, params.position_offset + params.seq));
  const float sign = inverse ? -1.0f : 1.0f;
  pool_.RunRanges(x.rows, kRowGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      const float* angles = table + (t % params.seq + params.position_offset) * params.head_dim;
      for (int64_t head = 0; head < params.heads; ++head) {
        Cloned<RotateHead>(x.f32() + t * width + head * params.head_dim, angles, angles + half,
                           sign, half);
      }
    }
  });
  return OkStatus();
}

Status CpuBackend::RopeForward(const RopeParams& params, ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(CheckView("Rope", "x", x, x.rows, x.cols));
  RETURN_IF_ERROR(CheckView("Rope", "out", out, x.rows, x.cols));
  if (out.data != x.data) RETURN_IF_ERROR(Copy(out.data, x.data, x.size_bytes()));
  return Rope(params, out, false);
}
Status CpuBackend::RopeBackward(const RopeParams& params, TensorView dx) {
  return Rope(params, dx, true);
}

}  // namespace nibble::cpu
