// SPDX-License-Identifier: Apache-2.0
//
// Operands formed only to be quantized: the rows reach memory once, as the BF16 values that the
// quantizer would make of them.
#include "kernels/cuda/cuda_backend.h"

namespace nibble::cuda {

Status CudaBackend::QuantizeFormed(const OperandSource& source, const Quant& quant,
                                   const QuantizeContext& context, QuantizedTensor* out) {
  const bool rotates = quant.rotation.size > 0;
  const bool rounds =
      rotates ? RotatesInTiles(quant) && quant.source != Source::kRequant : context.round_source;
  // Past maxima are taken of FP32 rows.
  if (!rounds || quant.has_history()) {
    return Backend::QuantizeFormed(source, quant, context, out);
  }
  OperandSource rows = source;
  rows.rows.dtype = DType::kBF16;
  const bool counts = source.form == OperandSource::Form::kSwiGlu && quant.pre.enabled &&
                      quant.pre.scope == OccScope::kTensor && source.rows.size() > 0;
  RETURN_IF_ERROR(counts ? CountSwiGlu(rows.a, rows.b, rows.rows) : FormRows(*this, rows));
  if (rotates) return QuantizeRotated(quant, context, rows.rows, {}, out, {});
  return QuantizeView(quant, context, rows.rows, out, {}, counts);
}

}  // namespace nibble::cuda
