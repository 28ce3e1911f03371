// SPDX-License-Identifier: Apache-2.0
//
// Block quantizers, rotations and Quartet II against golden values.
#include <cmath>
#include <numeric>

#include "kernels/formats/fp8.h"
#include "tests/golden/golden_backend.h"

namespace nibble {
namespace {

using golden::Case;
using golden::Doubles;
using golden::Flat;
using golden::Floats;
using golden::ListedSource;

using GoldenBlocks = golden::GoldenBackend;

Quant Group(int size, ScaleRule scale, float scale_max) {
  Quant quant;
  quant.elem = Elem::kE2M1;
  quant.block = Block::kGroup;
  quant.group = size;
  quant.scale = scale;
  quant.scale_max = scale_max;
  return quant;
}

void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected, double tol,
                const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    const double wanted = static_cast<double>(expected[i]);
    EXPECT_NEAR(static_cast<double>(got[i]), wanted, tol * std::fmax(1.0, std::fabs(wanted)))
        << what << " " << i;
  }
}

TEST_F(GoldenBlocks, B01MxScalesDownAndUp) {
  for (const char* id : {"B01_ocp_floor", "B01_round_up"}) {
    const Json golden = Case("blocks", id);
    const bool up = std::string(id) == "B01_round_up";
    QuantizedTensor q;
    const std::vector<float> decoded =
        Decode(Group(32, up ? ScaleRule::kE8Up : ScaleRule::kE8Floor, 6),
               Floats(golden["inputs"]["x"]), 1, &q);
    EXPECT_EQ(ScaleCodes(q)[0], golden["expect"]["scale_code"].AsInt()) << id;
    EXPECT_EQ(Nibbles(q), Floats(golden["expect"]["codes"])) << id;
    EXPECT_EQ(decoded, Floats(golden["expect"]["dequant"])) << id;
  }
}

TEST_F(GoldenBlocks, B02MxWorstCases) {
  const Json golden = Case("blocks", "B02");
  for (const auto& [name, rule] :
       {std::pair("ocp_floor", ScaleRule::kE8Floor), std::pair("round_up", ScaleRule::kE8Up)}) {
    QuantizedTensor q;
    std::vector<float> decoded = Decode(Group(32, rule, 6), Floats(golden["inputs"]["x"]), 1, &q);
    EXPECT_EQ(ScaleCodes(q)[0], golden["expect"][name]["code"].AsInt());
    decoded.resize(4);
    EXPECT_EQ(decoded, Floats(golden["expect"][name]["dequant"]));
  }
}

TEST_F(GoldenBlocks, B03NvScalesShareOneAmax) {
  const Json golden = Case("blocks", "B03");
  QuantizedTensor q;
  const std::vector<float> decoded =
      Decode(Group(16, ScaleRule::kNv, 448), Flat(golden["inputs"]["x"]), 2, &q);
  EXPECT_EQ(GroupScales(q), Flat(golden["expect"]["scales_e4m3"]));
  EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])));
  ExpectNear(decoded, Flat(golden["expect"]["dequant"]), 1e-7, "dequant");
}

TEST_F(GoldenBlocks, B04NvTilesAndTheirTranspose) {
  const Json golden = Case("blocks", "B04");
  Quant quant = Group(16, ScaleRule::kNv, 448);
  quant.block = Block::kTile;
  const std::vector<float> x = Flat(golden["inputs"]["x"]);
  QuantizedTensor q;
  Decode(quant, x, 16, &q);
  EXPECT_EQ(GroupScales(q), Flat(golden["expect"]["tile_scales"]));
  const std::vector<float> codes = Nibbles(q);
  EXPECT_EQ(WithoutNegativeZero(codes), WithoutNegativeZero(Flat(golden["expect"]["codes"])));
  std::vector<float> turned(x.size());
  for (size_t r = 0; r < 16; ++r) {
    for (size_t c = 0; c < 32; ++c) turned[c * 16 + r] = x[r * 32 + c];
  }
  QuantizedTensor t;
  Decode(quant, turned, 32, &t);
  const std::vector<float> turned_codes = Nibbles(t);
  for (size_t r = 0; r < 16; ++r) {
    for (size_t c = 0; c < 32; ++c) EXPECT_EQ(turned_codes[c * 16 + r], codes[r * 32 + c]);
  }
}

TEST_F(GoldenBlocks, B05B06NvUnderflowAndZeros) {
  for (const char* id : {"B05", "B06"}) {
    const Json golden = Case("blocks", id);
    QuantizedTensor q;
    const std::vector<float> decoded =
        Decode(Group(16, ScaleRule::kNv, 448), Flat(golden["inputs"]["x"]), 1, &q);
    EXPECT_EQ(GroupScales(q), Flat(golden["expect"]["scales_e4m3"])) << id;
    EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])))
        << id;
    const bool listed = golden["expect"]["dequant"].is_array();
    EXPECT_EQ(decoded, listed ? Flat(golden["expect"]["dequant"])
                              : std::vector<float>(decoded.size(), 0.0f));
  }
}

TEST_F(GoldenBlocks, B07QuartetForwardAndMask) {
  const Json golden = Case("blocks", "B07");
  Quant quant = Group(32, ScaleRule::kQuartet, 6);
  quant.mask = Mask::kBelow6;
  QuantizedTensor q;
  const std::vector<float> decoded = Decode(quant, Floats(golden["inputs"]["xh"]), 1, &q);
  EXPECT_EQ(ScaleCodes(q)[0] - 127, golden["expect"]["exp"].AsInt());
  EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])));
  EXPECT_EQ(Masks(q), Floats(golden["expect"]["mask"]));
  EXPECT_EQ(decoded, Floats(golden["expect"]["dequant"]));
}

TEST_F(GoldenBlocks, B08B09QuartetBackward) {
  for (const char* id : {"B08", "B09"}) {
    const Json golden = Case("blocks", id);
    Quant quant = Group(32, ScaleRule::kA34, 6);
    QuantizeContext context;
    ListedSource source;
    if (std::string(id) == "B09") {
      quant.round = Round::kSr24;
      const std::vector<double> u = Doubles(golden["inputs"]["u"]);
      source.word = [u](uint32_t, uint64_t i) { return golden::WordOf(u[i]); };
      context.replay = &source;
    }
    QuantizedTensor q;
    const std::vector<float> decoded =
        Decode(quant, context, Floats(golden["inputs"]["xh"]), 1, &q);
    EXPECT_EQ(ScaleCodes(q)[0] - 127, golden["expect"]["exp"].AsInt()) << id;
    EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])))
        << id;
    EXPECT_EQ(decoded, Floats(golden["expect"]["dequant"])) << id;
  }
}

TEST_F(GoldenBlocks, B10OneScalePerInputChannel) {
  const Json golden = Case("blocks", "B10");
  Quant quant = Group(0, ScaleRule::kP2, 6);
  quant.block = Block::kInputChannel;
  quant.round = Round::kHalfUp;
  QuantizedTensor q;
  const std::vector<float> decoded = Decode(quant, Flat(golden["inputs"]["x"]), 4, &q);
  const float* enc = static_cast<const float*>(q.enc.data());
  EXPECT_EQ(std::vector<float>(enc, enc + 3), Floats(golden["expect"]["sf"]));
  EXPECT_EQ(decoded, Flat(golden["expect"]["dequant"]));
}

TEST_F(GoldenBlocks, B12QuestIntegersAndTrust) {
  const Json golden = Case("blocks", "B12");
  Quant quant = Group(0, ScaleRule::kQuest, 0);
  quant.elem = Elem::kInt4C;
  quant.block = Block::kToken;
  quant.scale_factor = 2.513930578568423f;
  quant.mask = Mask::kTrust;
  QuantizedTensor q;
  const std::vector<float> decoded = Decode(quant, Floats(golden["inputs"]["xh"]), 1, &q);
  const float step = static_cast<const float*>(q.enc.data())[0];
  EXPECT_NEAR(step, golden["expect"]["step"].AsDouble(), 1e-7);
  EXPECT_NEAR(step * 7.5f, golden["expect"]["scale"].AsDouble(), 1e-6);
  // The reference is float64, the scale here float32.
  ExpectNear(decoded, Floats(golden["expect"]["dequant"]), 2e-7, "dequant");
  const std::vector<float> mask = Floats(golden["expect"]["mask"]);
  const std::vector<float> ignore = Floats(golden["expect"]["mask_ignore"]);
  for (size_t i = 0; i < mask.size(); ++i) {
    if (ignore[i] == 0) {
      EXPECT_EQ(Masks(q)[i], mask[i]) << i;
    }
  }
}

TEST_F(GoldenBlocks, B13FourOverSixByAbsoluteError) {
  const Json golden = Case("blocks", "B13");
  Quant quant = Group(16, ScaleRule::kNv, 256);
  quant.alternatives = {{6, 4}, ErrorMetric::kMae};
  QuantizedTensor q;
  Decode(quant, Flat(golden["inputs"]["x"]), 1, &q);
  EXPECT_EQ(GroupScales(q), Flat(golden["expect"]["scales_e4m3"]));
  EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])));
}

class GoldenHadamard : public golden::GoldenBackend {
 protected:
  std::vector<float> Rotate(const Rotation& rotation, const std::vector<double>& signs,
                            std::vector<float> x) {
    ListedSource source;
    source.signs = signs;
    QuantizeContext context;
    if (!signs.empty()) context.replay = &source;
    const int64_t n = static_cast<int64_t>(x.size());
    const Status status =
        backend_->Rotate(rotation, context, false, {x.data(), 1, n}, {x.data(), 1, n});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return x;
  }
};

TEST_F(GoldenHadamard, H01FourPoints) {
  const Json golden = Case("hadamard", "H01");
  EXPECT_EQ(Rotate({4, Signs::kNone}, {}, Floats(golden["inputs"]["x"])),
            Floats(golden["expect"]["y"]));
}

TEST_F(GoldenHadamard, H02H03FixedSigns) {
  for (const char* id : {"H02", "H03"}) {
    const Json golden = Case("hadamard", id);
    EXPECT_EQ(Rotate({16, Signs::kFixed}, {}, Floats(golden["inputs"]["x"])),
              Floats(golden["expect"]["y"]))
        << id;
  }
}

TEST_F(GoldenHadamard, H04SignsComeBeforeTheTransform) {
  const Json golden = Case("hadamard", "H04");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const auto magnitudes = [](std::vector<float> y) {
    for (float& value : y) value = std::fabs(value);
    return y;
  };
  ExpectNear(magnitudes(Rotate({32, Signs::kNone}, {}, x)), Floats(golden["expect"]["abs_plain"]),
             3e-7, "plain");
  ExpectNear(magnitudes(Rotate({32, Signs::kFresh}, Doubles(golden["inputs"]["signs"]), x)),
             Floats(golden["expect"]["abs_signs_before"]), 3e-7, "before");
}

TEST_F(GoldenBlocks, Q01QuartetTwoForward) {
  for (const char* id : {"Q01a", "Q01b"}) {
    const Json golden = Case("quartet2", id);
    const bool four = std::string(id) == "Q01b";
    Quant quant = Group(16, ScaleRule::kNv, four ? 256 : 448);
    quant.round = Round::kAway;
    if (four) quant.alternatives = {{6, 4}, ErrorMetric::kMse};
    QuantizedTensor q;
    const std::vector<float> decoded = Decode(quant, Floats(golden["inputs"]["x"]), 4, &q);
    EXPECT_EQ(ScaleCodes(q), Floats(golden["expect"]["scale_codes_e4m3"])) << id;
    EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])))
        << id;
    EXPECT_EQ(decoded, Floats(golden["expect"]["dequant"])) << id;
  }
}

class GoldenEden : public GoldenHadamard {
 protected:
  // The rotated input of Q02, which Q04 shares.
  std::vector<float> Rotated() {
    const Json golden = Case("quartet2", "Q02");
    ListedSource source;
    source.signs = Doubles(golden["inputs"]["signs"]);
    QuantizeContext context;
    context.replay = &source;
    std::vector<float> x = Floats(golden["inputs"]["x"]);
    const Status status = backend_->Rotate({128, Signs::kFresh}, context, false, {x.data(), 2, 128},
                                           {x.data(), 2, 128});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return x;
  }
};

TEST_F(GoldenEden, Q02Simulation) {
  const Json golden = Case("quartet2", "Q02");
  const std::vector<float> rotated = Rotated();
  ExpectNear(rotated, Floats(golden["expect"]["rotated"]), 1e-7, "rotated");
  Quant quant = Group(16, ScaleRule::kEden, 255.99f);
  quant.scale_factor = 0.988125f;
  quant.correction_group = 128;
  quant.scale_round = ScaleRound::kStochastic;
  quant.round = Round::kAway;
  ListedSource source;
  const std::vector<double> u = Doubles(golden["inputs"]["u"]);
  source.word = [u](uint32_t, uint64_t block) { return golden::WordOf(u[block]); };
  QuantizeContext context;
  context.round_source = false;
  context.replay = &source;
  QuantizedTensor q;
  const std::vector<float> decoded = Decode(quant, context, rotated, 2, &q);
  EXPECT_EQ(ScaleCodes(q), Floats(golden["expect"]["final_scale_codes"]));
  EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])));
  EXPECT_NEAR(static_cast<const float*>(q.outer_scale.data())[0],
              golden["expect"]["sdec"].AsDouble(), 1e-11);
  ExpectNear(decoded, Floats(golden["expect"]["dequant"]), 1e-7, "dequant");
}

TEST_F(GoldenEden, Q04Kernel) {
  const Json golden = Case("quartet2", "Q04");
  const std::vector<double> permutation = Doubles(golden["inputs"]["row_permutation"]);
  const std::vector<float> rotated = Rotated();
  std::vector<float> permuted(rotated.size());
  for (size_t i = 0; i < rotated.size(); ++i) {
    permuted[i] = rotated[i / 128 * 128 + static_cast<size_t>(permutation[i % 128])];
  }
  Quant quant = Group(16, ScaleRule::kEden, 256);
  quant.scale_factor = 0.988125f;
  quant.correction_group = 16;
  quant.scale_round = ScaleRound::kStochastic;
  ListedSource source;
  const std::vector<double> noise = Doubles(golden["inputs"]["noise16"]);
  source.word = [noise](uint32_t, uint64_t block) {
    return static_cast<uint32_t>(noise[block]) << 16;
  };
  QuantizeContext context;
  context.round_source = false;
  context.replay = &source;
  QuantizedTensor q;
  Decode(quant, context, permuted, 2, &q);
  EXPECT_EQ(ScaleCodes(q), Floats(golden["expect"]["final_scale_codes"]));
  EXPECT_EQ(WithoutNegativeZero(Nibbles(q)), WithoutNegativeZero(Flat(golden["expect"]["codes"])));
  EXPECT_NEAR(static_cast<const float*>(q.outer_scale.data())[0],
              golden["expect"]["global_scale"].AsDouble(), 1e-11);
}

}  // namespace
}  // namespace nibble
