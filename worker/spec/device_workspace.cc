// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/device_workspace.h"

#include <algorithm>

#include "kernels/recipe/product_path.h"
#include "worker/spec/recipe_fit.h"

namespace nibble {
namespace {

constexpr int64_t kFloatBytes = 4, kBf16Bytes = 2;
constexpr int64_t kMatmulBytes = int64_t{32} << 20;  // for cuBLASLt's algorithms
constexpr int64_t kNormChunkRows = 16;               // of a partial sum of a norm's weight gradient

// The largest that any product of the run needs. Operands have a place each: X as it is and turned,
// dY as it is and turned, W for forward and turned (kernels/cuda/code_carrier.h: CarriedPlace,
// where X and dY as they are share one).
struct CarriedBytes {
  int64_t left = 0, left_turned = 0, forward = 0, input_gradient = 0, weight_gradient = 0;
  int64_t residual = 0;  // outliers of the left operand that are a product of their own
  int64_t product = 0;   // before its scales, where the product does not apply them
  int64_t total() const {
    return left + left_turned + forward + input_gradient + weight_gradient + residual + product;
  }
};

bool IsFp8(const Quant& quant) {
  const bool elem =
      quant.elem == Elem::kE2M1 || quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2;
  const bool grouped = quant.block == Block::kGroup || quant.block == Block::kTile;
  const bool bytes = !quant.pre.enabled || quant.pre.comp == OccComp::kNone ||
                     quant.pre.comp == OccComp::kWideE4M3 || quant.pre.comp == OccComp::kE4M3;
  return elem && !grouped && bytes;
}

// Whether codes as they rest are FP8 bytes, so that nothing is carried.
bool RestsAsFp8(const Quant& quant) {
  return quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2;
}

class Carrying {
 public:
  Carrying(int64_t tokens, CarriedBytes* most) : tokens_(tokens), most_(*most) {}

  // y (T, N) = X W^T, dX = dY W and dW = dY^T X of one layer (K, N).
  void Add(const LinearRecipe& recipe, const LinearShape& shape) {
    const int64_t t = tokens_, k = shape.in, n = shape.out;
    Product(recipe, Slot::kXf, Slot::kWf, t * k, n * k, t * n, false, &most_.left, &most_.forward);
    Product(recipe, Slot::kGd, Slot::kWd, t * n, n * k, t * k, false, &most_.left,
            &most_.input_gradient);
    Product(recipe, Slot::kGw, Slot::kXw, t * n, t * k, n * k, true, &most_.left_turned,
            &most_.weight_gradient);
  }

 private:
  void Product(const LinearRecipe& recipe, Slot a, Slot b, int64_t a_size, int64_t b_size,
               int64_t out_size, bool turned, int64_t* a_place, int64_t* b_place) {
    if (!MultipliesCodes(recipe, a, b, CudaMultipliesCodes)) return;
    const Quant& left = recipe.Resolved(a);
    const Quant& right = recipe.Resolved(b);
    const bool both_e5m2 = left.elem == Elem::kE5M2 && right.elem == Elem::kE5M2;
    const bool fp8 = IsFp8(left) && IsFp8(right) && !both_e5m2;
    const int64_t bytes = fp8 ? 1 : kBf16Bytes;
    const auto most = [bytes](int64_t* place, int64_t size) {
      *place = std::max(*place, size * bytes);
    };
    if (!fp8 || turned || !RestsAsFp8(left)) most(a_place, a_size);
    // Only forward takes W as it rests.
    if (!fp8 || b != Slot::kWf || !RestsAsFp8(right)) most(b_place, b_size);
    const bool residual =
        left.pre.enabled && (left.pre.comp == OccComp::kE4M3 || left.pre.comp == OccComp::kBf16);
    if (residual) most(&most_.residual, a_size);
    if (!fp8) most_.product = std::max(most_.product, out_size * kFloatBytes);
  }

  int64_t tokens_;
  CarriedBytes& most_;
};

// What the quantizers gather of each scale group along the tokens: two sums under rules that have
// them, and a maximum unless it stays within a tile.
int64_t GroupBytes(const LinearRecipe& recipe, int64_t tokens, int64_t widest) {
  constexpr int64_t kSumBytes = 16, kMaximumBytes = 4;
  int64_t bytes = 0;
  for (const Quant& quant : recipe.slots) {
    if (quant.block != Block::kGroup && quant.block != Block::kTile) continue;
    const int64_t members = quant.block == Block::kTile ? quant.group * quant.group : quant.group;
    const bool in_tiles = CudaQuantizesInTiles(quant, 0);
    const bool sums =
        quant.scale == ScaleRule::kEden || (quant.scale == ScaleRule::kQuartet && !in_tiles);
    const int64_t each = (sums ? kSumBytes : 0) + (in_tiles ? 0 : kMaximumBytes);
    bytes = std::max(bytes, tokens * widest / members * each);
  }
  return bytes;
}

// Sums of Y that wait to be rounded to BF16: of decoded operands, or with outliers that are a
// product of their own. `size`: elements of Y.
int64_t RoundedBytes(const LinearRecipe& recipe, int64_t size) {
  const Quant& x = recipe.Resolved(Slot::kXf);
  const Quant& w = recipe.Resolved(Slot::kWf);
  const auto is_bf16 = [](const Quant& q) { return q.elem == Elem::kBf16 && q.rotation.size == 0; };
  const bool residual =
      x.pre.enabled && (x.pre.comp == OccComp::kE4M3 || x.pre.comp == OccComp::kBf16);
  const bool codes = MultipliesCodes(recipe, Slot::kXf, Slot::kWf, CudaMultipliesCodes);
  const bool at_once = codes ? !residual : is_bf16(x) && is_bf16(w);
  return at_once ? 0 : size * kFloatBytes;
}

// What attention takes otherwise than as it rests. Tensor cores take BF16: dO, and Q, K and V where
// those rest as FP32. FP32 arithmetic takes all that is rounded, or rests as BF16, as FP32 numbers.
int64_t AttentionBytes(const ModelConfig& model, int64_t tokens, bool rounds, bool narrow) {
  const int64_t inputs = tokens * (model.hidden_size + 2 * model.kv_size());
  const int64_t gradient = tokens * model.hidden_size;
  const bool tensor_cores = model.head_dim() == 64 || model.head_dim() == 128;
  if (rounds && tensor_cores) return (gradient + (narrow ? 0 : inputs)) * kBf16Bytes;
  if (rounds) return (gradient + inputs) * kFloatBytes;
  return narrow ? inputs * kFloatBytes : 0;
}

}  // namespace

int64_t DeviceWorkspaceBytes(const ModelConfig& model, const Recipe& recipe, const BufferPlan& plan,
                             int64_t seq_len) {
  const int64_t t = plan.tokens, d = model.hidden_size;
  const int64_t widest = std::max(d, model.intermediate_size);
  const std::array<LinearShape, kLinearKinds> shapes = BlockLinears(model);
  const int layers = static_cast<int>(model.layers);
  const bool narrow = !plan.blocks.empty() && plan.blocks.front().value.element_bytes == kBf16Bytes;
  CarriedBytes carried;
  int64_t groups = 0, rounded = 0;
  for (int stage = -1; stage < static_cast<int>(recipe.stages.size()); ++stage) {
    for (int layer = 0; layer < layers; ++layer) {
      for (size_t kind = 0; kind < shapes.size(); ++kind) {
        const LinearRecipe one =
            recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers, stage);
        Carrying(t, &carried).Add(one, shapes[kind]);
        groups = std::max(groups, GroupBytes(one, t, widest));
        const auto which = static_cast<LinearKind>(kind);
        const bool kept =
            which == LinearKind::kValue || which == LinearKind::kGate || which == LinearKind::kUp;
        if (narrow && kept) rounded = std::max(rounded, RoundedBytes(one, t * shapes[kind].out));
      }
    }
  }
  const int64_t attention = t * model.heads * kFloatBytes +  // sums of dO * O
                            AttentionBytes(model, t, recipe.rounds_to_bf16(), narrow);
  const int64_t norms = (t + kNormChunkRows - 1) / kNormChunkRows * d * kFloatBytes;
  const int64_t angles = seq_len * model.head_dim() * kFloatBytes;
  return kMatmulBytes + attention + angles + norms + groups + rounded + carried.total();
}

}  // namespace nibble
