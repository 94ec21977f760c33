// Launchers of the op cross-entropy; formulas and contract: cross_entropy.cuh and fasttx/ops/cross_entropy/op.py.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace fasttx {

// Rows lie at one stride, columns at stride 1. Exactly one of labels and probabilities is given.
struct CrossEntropyFwdParams {
  float* loss;          // (n_rows,), or one number where there are partials
  float* lse;           // (n_rows,)
  float* total_weight;  // what a mean divides by, else 1
  float* partials;      // workspace of n_partials >= 2 n_rows floats for a mean or a sum; nullptr: a loss for each row
  const void* logits;
  const int64_t* labels;
  In probabilities;
  In weight;    // contiguous
  DType dtype;  // of the logits
  int64_t n_rows, n_cols, stride_xm, stride_tm, n_partials;
  int64_t ignore_index;
  float smoothing;
  bool mean;
};

struct CrossEntropyBwdParams {
  void* dlogits;
  const float* dloss;  // rows at stride_dloss, 0 where the loss is one number
  const void* logits;
  const int64_t* labels;
  In probabilities;
  In weight;
  const float* weight_sum;  // for labels with weight and smoothing
  const float* lse;
  const float* total_weight;
  DType dtype;
  int64_t n_rows, n_cols, stride_dloss, stride_dxm, stride_xm, stride_tm;
  int64_t ignore_index;
  float smoothing;
};

void cross_entropy_fwd(const CrossEntropyFwdParams& params, Stream stream);
void cross_entropy_bwd(const CrossEntropyBwdParams& params, Stream stream);

}  // namespace fasttx
