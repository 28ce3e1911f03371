// SPDX-License-Identifier: Apache-2.0
//
// The built-in rows by family, as the same JSON a user would write. Thread-safe, static storage.
#pragma once

#include <span>
#include <string_view>

namespace nibble::recipe_rows {

struct Row {
  std::string_view name;
  std::string_view json;
};

std::span<const Row> Baselines();     // fp32, bf16, FP8
std::span<const Row> VectorScaled();  // FP4 with one scale per tensor, token or channel
std::span<const Row> Microscaled();   // FP4 with E8M0 scales per group
std::span<const Row> NvScaled();      // FP4 with E4M3 or UE5M3 scales per group

}  // namespace nibble::recipe_rows
