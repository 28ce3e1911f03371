// SPDX-License-Identifier: Apache-2.0
//
// The kernel sets of an Arm build against plain loops, as a program of its own: it is compiled by a
// cross compiler and runs in an emulator where this machine is no Arm. Exit status 0: all equal.
//   code_kernels_arm EXPECTED_SET
// EXPECTED_SET is the set the (emulated) CPU must choose by itself.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cpu/codes/kernels.h"
#include "kernels/cpu/cpu_features.h"

namespace nibble::cpu::codes {
namespace {

int failures = 0;
int checks = 0;

void Expect(bool equal, const char* set, const char* what, int64_t depth) {
  ++checks;
  if (equal) return;
  if (++failures <= 20) {
    std::printf("%s: %s differs at depth %lld\n", set, what, static_cast<long long>(depth));
  }
}

enum class Pattern { kRandom, kLargest, kAlternating };

uint32_t Draw() {
  static uint32_t state = 12345;
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

// (lanes, depth) codes.
std::vector<int8_t> Codes(int64_t lanes, int64_t depth, int max, Pattern pattern) {
  std::vector<int8_t> codes;
  for (int64_t i = 0; i < lanes * depth; ++i) {
    const int random = static_cast<int>(Draw() % static_cast<uint32_t>(2 * max + 1)) - max;
    const int fixed = pattern == Pattern::kAlternating && i % 2 == 1 ? -max : max;
    codes.push_back(static_cast<int8_t>(pattern == Pattern::kRandom ? random : fixed));
  }
  return codes;
}

struct Panels {
  std::vector<uint8_t> bytes;
  int64_t panel_bytes;
};

// Packs by one scatter or the other; both must give the same bytes.
Panels Pack(const KernelSet& set, const PanelLayout& layout, const std::vector<int8_t>& codes,
            int64_t lanes, int64_t depth) {
  Panels along, across;
  along.panel_bytes = across.panel_bytes = layout.lanes * depth * layout.code_bytes();
  along.bytes.resize(static_cast<size_t>(lanes / layout.lanes * along.panel_bytes));
  across.bytes = along.bytes;
  for (int64_t lane = 0; lane < lanes; lane += 8) {
    set.scatter_along(codes.data() + lane * depth, depth, depth, layout, along.panel_bytes, lane, 0,
                      along.bytes.data());
  }
  std::vector<int8_t> turned(codes.size());
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t k = 0; k < depth; ++k) {
      turned[static_cast<size_t>(k * lanes + lane)] = codes[static_cast<size_t>(lane * depth + k)];
    }
  }
  for (int64_t k = 0; k < depth; k += 8) {
    set.scatter_across(turned.data() + k * lanes, lanes, lanes, layout, across.panel_bytes, 0, k,
                       across.bytes.data());
  }
  Expect(along.bytes == across.bytes, set.name, "packing", depth);
  return along;
}

int64_t Sum(const std::vector<int8_t>& a, const std::vector<int8_t>& b, int64_t i, int64_t j,
            int64_t depth, int64_t first, int64_t last) {
  int64_t sum = 0;
  for (int64_t k = first; k < last; ++k) {
    sum += int64_t{a[static_cast<size_t>(i * depth + k)]} * b[static_cast<size_t>(j * depth + k)];
  }
  return sum;
}

struct Operands {
  std::vector<int8_t> left, right;
  Panels left_panels, right_panels;
};

Operands Make(const KernelSet& set, const Variant& v, int64_t depth, Pattern pattern) {
  const int64_t left_lanes = v.left.lanes < 8 ? 8 : v.left.lanes;
  Operands o;
  o.left = Codes(left_lanes, depth, v.left_max, pattern);
  o.right = Codes(v.right.lanes, depth, v.right_max,
                  pattern == Pattern::kAlternating ? Pattern::kLargest : pattern);
  o.left_panels = Pack(set, v.left, o.left, left_lanes, depth);
  o.right_panels = Pack(set, v.right, o.right, v.right.lanes, depth);
  return o;
}

void CheckOuter(const KernelSet& set, const Variant& v, int64_t depth, Pattern pattern) {
  const Operands o = Make(set, v, depth, pattern);
  std::vector<int32_t> tile(static_cast<size_t>(v.left.lanes * v.right.lanes));
  const uint8_t* left = o.left_panels.bytes.data();
  const uint8_t* right = o.right_panels.bytes.data();
  // Two pieces, the second one resumes.
  const int64_t first = depth >= 16 ? depth / 16 * 8 : depth;
  v.tile({left, right, nullptr, nullptr, first, false, tile.data()});
  if (first < depth) {
    v.tile({left + first * v.left.lanes * v.left.code_bytes(),
            right + first * v.right.lanes * v.right.code_bytes(), nullptr, nullptr, depth - first,
            true, tile.data()});
  }
  const std::vector<float> scale(64, 0.37f), other(64, 1.7f);
  std::vector<float> out(tile.size(), 1.0f);
  set.finish(tile.data(), {v.left.lanes, v.right.lanes - 3, v.right.lanes, scale.data(),
                           other.data(), nullptr, 0, true, out.data(), v.right.lanes});
  for (int64_t i = 0; i < v.left.lanes; ++i) {
    for (int64_t j = 0; j < v.right.lanes; ++j) {
      const int64_t want = Sum(o.left, o.right, i, j, depth, 0, depth);
      const size_t at = static_cast<size_t>(i * v.right.lanes + j);
      Expect(tile[at] == want, set.name, "tile", depth);
      const float scaled = static_cast<float>(want) * 0.37f;
      const float y = scaled * 1.7f;
      Expect(out[at] == (j < v.right.lanes - 3 ? 1.0f + y : 1.0f), set.name, "epilogue", depth);
    }
  }
}

void CheckGroups(const KernelSet& set, const Variant& v, int64_t group, int64_t groups,
                 Pattern pattern) {
  const int64_t depth = group * groups;
  const Operands o = Make(set, v, depth, pattern);
  std::vector<float> left(static_cast<size_t>(groups * 64)), right(left.size());
  for (float& x : left) x = 0.01f * static_cast<float>(1 + Draw() % 100);
  for (float& x : right) x = 0.03f * static_cast<float>(1 + Draw() % 100);
  std::vector<float> tile(static_cast<size_t>(v.left.lanes * v.right.lanes));
  v.group_tile({o.left_panels.bytes.data(), o.right_panels.bytes.data(), nullptr, groups, group,
                left.data(), right.data(), 64, 64, false, tile.data()});
  for (int64_t i = 0; i < v.left.lanes; ++i) {
    for (int64_t j = 0; j < v.right.lanes; ++j) {
      float want = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const float factor =
            left[static_cast<size_t>(g * 64 + i)] * right[static_cast<size_t>(g * 64 + j)];
        const int64_t sum = Sum(o.left, o.right, i, j, depth, g * group, (g + 1) * group);
        const float term = static_cast<float>(sum) * factor;
        want += term;
      }
      Expect(tile[static_cast<size_t>(i * v.right.lanes + j)] == want, set.name, "groups", depth);
    }
  }
}

void CheckSet(const KernelSet& set) {
  for (const Pattern pattern : {Pattern::kRandom, Pattern::kLargest, Pattern::kAlternating}) {
    for (const int64_t depth : {8, 16, 72, 456, 1288}) {
      for (int i = 0; i < set.outer_count; ++i) CheckOuter(set, set.outer[i], depth, pattern);
    }
    for (const int64_t group : {16, 32, 128}) {
      for (int i = 0; i < set.grouped_count; ++i) {
        CheckGroups(set, set.grouped[i], group, 5, pattern);
      }
    }
  }
}

int Run(const std::string& expected) {
  const Result<std::vector<CpuCapability>> capabilities = CpuCapabilities();
  if (!capabilities.ok() || capabilities->front().chosen != expected) {
    std::printf("this CPU chose %s, expected %s\n",
                capabilities.ok() ? capabilities->front().chosen.c_str() : "nothing",
                expected.c_str());
    return 1;
  }
  int sets = 0;
  for (const CpuCapability::Option& option : capabilities->front().considered) {
    if (!option.usable) continue;
    CheckSet(**ChooseCodeKernels(option.name));
    ++sets;
  }
  std::printf("%d sets, %d checks, %d differences\n", sets, checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace nibble::cpu::codes

int main(int argc, char** argv) {
  if (argc != 2) {
    std::printf("usage: code_kernels_arm EXPECTED_SET\n");
    return 2;
  }
  return nibble::cpu::codes::Run(argv[1]);
}
