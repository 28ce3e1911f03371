// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/layer.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"

namespace nibble {

Result<LayerData> MakeLayer(Matrix x, Matrix w, Matrix dy) {
  if (x.cols != w.cols || dy.rows != x.rows || dy.cols != w.rows) {
    const auto shape = [](const Matrix& m) {
      return StrFormat("%s (%lld, %lld)", m.name.c_str(), static_cast<long long>(m.rows),
                       static_cast<long long>(m.cols));
    };
    return InvalidArgumentError(shape(x) + ", " + shape(w) + " and " + shape(dy) +
                                " do not fit; expected X (T, K), W (N, K), dY (T, N)");
  }
  LayerData data;
  data.y = MakeMatrix("Y", x.rows, w.rows);
  data.dx = MakeMatrix("dX", x.rows, x.cols);
  data.dw = MakeMatrix("dW", w.rows, w.cols);
  data.x = std::move(x);
  data.w = std::move(w);
  data.dy = std::move(dy);
  return data;
}

Status RunLayer(Backend* backend, const LinearRecipe& recipe, const LinearStep& step, Support path,
                LayerData* data) {
  constexpr uint32_t kLayer = 0;  // of the random stream
  constexpr uint64_t kWeightVersion = 1;
  std::fill(data->dw.values.begin(), data->dw.values.end(), 0.0f);  // it accumulates
  RETURN_IF_ERROR(PathsOf(*backend, recipe, data->x.rows, data->x.cols, data->w.rows).status());
  LinearWorkspace workspace(backend, path);
  LinearInput input(&workspace, recipe, kLayer);
  QuantizedLinear linear(&workspace, recipe, kLayer);
  RETURN_IF_ERROR(input.Set(step, std::as_const(data->x).view()));
  const ConstTensorView w = std::as_const(data->w).view();
  RETURN_IF_ERROR(linear.Forward(step, input, w, kWeightVersion, data->y.view()));
  return linear.Backward(step, std::as_const(data->dy).view(), input, w, kWeightVersion,
                         data->dx.view(), false, data->dw.view());
}

}  // namespace nibble
