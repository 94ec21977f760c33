// The launchers of binary cross-entropy with logits; formulas and contract stand in binary_cross_entropy.cuh and
// fasttx/ops/binary_cross_entropy/op.py.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace fasttx {

// A weight of `period` elements, element i of which weighs i, i + period, ...; below 2^20, or as many as there are.
struct RepeatedWeight {
  In values;
  int64_t period;
};

// All tensors are contiguous and have n elements.
struct BinaryCrossEntropyFwdParams {
  float* loss;      // n of them, or one number where there are partials
  float* partials;  // workspace of n_partials floats for a mean or a sum, one for each block; nullptr: n losses
  const void* x;
  In target;
  RepeatedWeight weight, pos_weight;
  DType dtype;  // of x
  int64_t n, n_partials;
  bool mean;
};

struct BinaryCrossEntropyBwdParams {
  void* dx;
  const float* dloss;  // n of them, or one number
  const void* x;
  In target;
  RepeatedWeight weight, pos_weight;
  DType dtype;
  int64_t n;
  bool one_dloss;
  float scale;  // 1 / n for a mean
};

void binary_cross_entropy_fwd(const BinaryCrossEntropyFwdParams& params, Stream stream);
void binary_cross_entropy_bwd(const BinaryCrossEntropyBwdParams& params, Stream stream);

}  // namespace fasttx
