// The launchers of the Kullback-Leibler divergence; formulas and contract stand in kl_div.cuh and
// fasttx/ops/kl_div/op.py.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace fasttx {

// All tensors are contiguous and have n elements.
struct KlDivFwdParams {
  float* loss;      // n of them, or one number where there are partials
  float* partials;  // workspace of n_partials floats for a sum, one for each block; nullptr: n losses
  const void* x;
  In target;
  DType dtype;  // of x
  int64_t n, n_partials;
  bool log_target;
  float divisor;  // of the sum
};

struct KlDivBwdParams {
  void* dx;
  const float* dloss;  // n of them, or one number
  In target;
  DType dtype;  // of dx
  int64_t n;
  bool log_target, one_dloss;
  float scale;  // 1 / divisor
};

void kl_div_fwd(const KlDivFwdParams& params, Stream stream);
void kl_div_bwd(const KlDivBwdParams& params, Stream stream);

}  // namespace fasttx
