// The end of linear cross-entropy's forward, whose losses of rows are ../cross_entropy's; formulas and contract stand
// in linear_cross_entropy.cuh and fasttx/ops/linear_cross_entropy/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

struct LinearCrossEntropyFwdParams {
  float* loss;              // sum row_losses / total_weight
  float* total_weight;      // of a mean the weights of the rows that are not ignored, else 1
  const float* row_losses;  // (n_rows,)
  const int64_t* labels;    // (n_rows,)
  In weight;                // (n_cols,), may be absent
  int64_t n_rows, n_cols, ignore_index;
  bool mean;
};

void linear_cross_entropy_fwd(const LinearCrossEntropyFwdParams& params, Stream stream);

}  // namespace fasttx
