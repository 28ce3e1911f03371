// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_product.h"

#include "kernels/recipe/product_path.h"

namespace nibble {
ProductForm FormOf(const Backend& backend, const LinearRecipe& recipe, const LinearProduct& product,
                   int64_t rows, int64_t cols, int64_t depth) {
  const Quant& left = recipe.Resolved(product.left);
  const Quant& right = recipe.Resolved(product.right);
  ProductForm form;
  if (!left.has_scale() && !right.has_scale()) {
    form.reason = "no operand is quantized";
    form.support = backend.Supports({Op::kGemm, left.elem, right.elem, rows, cols, depth});
    return form;
  }
  form.support = backend.Supports({Op::kQuantizedGemm, left.elem, right.elem, rows, cols, depth});
  form.reason = WhyDecoded(recipe, product.left, product.right);
  if (form.reason == nullptr && form.support != Support::kFast) {
    form.reason = "the backend has no kernel for these formats";
  }
  form.on_codes = form.reason == nullptr;
  if (form.on_codes) form.reason = "";
  if (!form.on_codes && form.support == Support::kFast) form.support = Support::kReference;
  return form;
}

Status Multiply(LinearWorkspace& workspace, const LinearRecipe& recipe,
                const LinearProduct& product, const ProductForm& form, SlotOperand& left,
                SlotOperand& right, bool accumulate, TensorView out) {
  Backend& backend = workspace.backend();
  if (form.on_codes) {
    QuantizedGemmParams params;
    params.transpose_a = product.transpose_left;
    params.transpose_b = product.transpose_right;
    params.fold_b = recipe.Resolved(product.left).fold;
    params.accumulate = accumulate;
    params.path = workspace.path();
    return backend.QuantizedGemm(params, left.codes(), right.codes(), out);
  }
  if (backend.StoresBf16() && left.is_bf16() && right.is_bf16()) {
    ASSIGN_OR_RETURN(const ConstTensorView a, left.InBf16(workspace));
    ASSIGN_OR_RETURN(const ConstTensorView b, right.InBf16(workspace));
    return backend.Gemm(GemmMode::kBf16, a, product.transpose_left, b, product.transpose_right,
                        accumulate, out);
  }
  ASSIGN_OR_RETURN(const ConstTensorView a, left.Decoded(workspace));
  ASSIGN_OR_RETURN(const ConstTensorView b, right.Decoded(workspace));
  return backend.Gemm(GemmMode::kF32, a, product.transpose_left, b, product.transpose_right,
                      accumulate, out);
}

}  // namespace nibble
