// SPDX-License-Identifier: Apache-2.0
//
// Wide outliers beside the codes instead of in them.
//
// Purpose: one code in fifty that does not fit E2M1 would force a whole product into a slower form.
// Where a kernel set can add outlier sums, the operand's plain codes are multiplied and what the
// outliers exceed them by is added to the same integer sums: the results are the same bits.
// Thread-safety: SplitOutliers pure; PlaceOutliers runs on the backend's one caller thread.
#pragma once

#include "base/status.h"
#include "kernels/cpu/codes/kernels.h"
#include "kernels/cpu/codes/operand.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu::codes {

// Takes the outliers out of the one operand that has any, where that is faster. A right operand
// becomes the left one of the transposed product. Before scales are written and a variant chosen.
void SplitOutliers(const KernelSet& kernels, CodeGemm* gemm);

// The outliers of a split left operand by its rows, for panels of the right one.
struct PlacedOutliers {
  const int32_t* offsets = nullptr;  // (rows + 1)
  const CodeOutlier* outliers = nullptr;
};
Result<PlacedOutliers> PlaceOutliers(Backend& backend, ThreadPool& pool, const CodeGemm& gemm,
                                     const PanelLayout& right, Buffer* memory);

}  // namespace nibble::cpu::codes
