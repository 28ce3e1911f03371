// SPDX-License-Identifier: Apache-2.0
//
// For builds without oneDNN.
#include "worker/bench/peers.h"

namespace nibble::bench {
namespace {

Status Absent() {
  return UnimplementedError("built without oneDNN; install libdnnl-dev and configure again");
}

}  // namespace

std::string OneDnnDescription() { return ""; }

Result<std::unique_ptr<OneDnnGemm>> MakeOneDnnF32(const GemmShape&, const float*, const float*,
                                                  float*, int) {
  return Absent();
}

Result<std::unique_ptr<OneDnnGemm>> MakeOneDnnInt8(const GemmShape&, int) { return Absent(); }

}  // namespace nibble::bench
