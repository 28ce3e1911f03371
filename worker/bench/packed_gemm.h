// SPDX-License-Identifier: Apache-2.0
//
// PackedGemm: the product of a GEMM on codes alone, operands already in the kernel's panels.
//
// Purpose: what the inner loops do, as libraries quote it; Backend::QuantizedGemm packs each time.
// Thread-safety: one thread. Ownership: owns panels, scales and threads; borrows codes and output.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cpu/codes/gemm.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::bench {

class PackedGemm {
 public:
  // out = a b^T. UNIMPLEMENTED when the chosen instruction set has no fast form for these operands.
  static Result<std::unique_ptr<PackedGemm>> Make(Backend* backend, int threads,
                                                  const QuantizedTensor& a,
                                                  const QuantizedTensor& b, TensorView out);
  Status Run();

 private:
  PackedGemm(Backend* backend, int threads) : backend_(*backend), pool_(threads) {}
  void WriteScales();

  Backend& backend_;
  cpu::ThreadPool pool_;
  cpu::codes::CodeGemm gemm_;
  const cpu::codes::KernelSet* kernels_ = nullptr;
  const cpu::codes::Variant* variant_ = nullptr;
  std::vector<float> scales_;
  cpu::codes::PackedCodes left_, right_;
  cpu::codes::FastWorkspace workspace_;
};

}  // namespace nibble::bench
