// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/blas.h"

namespace nibble::cpu {

SgemmFn BlasSgemm() { return nullptr; }
std::string BlasName() { return "no BLAS"; }

}  // namespace nibble::cpu
