// SPDX-License-Identifier: Apache-2.0
//
// What a device has proved, for people. Pure function, thread-safe.
#pragma once

#include <string>
#include <vector>

namespace nibble {

// "e2m1,sr24,34 recipes": proofs of recipes ("recipe:NAME") are counted.
std::string FeatureText(const std::vector<std::string>& features);

}  // namespace nibble
