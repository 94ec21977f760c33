// The loss of logits that were never in memory as a whole, from the losses of their rows.
//
// Mathematics
//   loss = sum_i loss_i / total,  total = sum_i w_{y_i} over the rows that are not ignored for a mean, else 1;
//   loss_i of ../cross_entropy/cross_entropy.cuh, 0 in an ignored row.
//
// Contract
//   One block: thread i adds rows i, i + 512, ..., then the block adds its threads, always in this order, so that the
//   loss is bitwise deterministic. An index outside [0, n_cols) that is not ignored makes the total NaN; nothing is
//   read out of bounds.
//
// Cost
//   12 bytes a row, and a weight where there are some. Shared memory: 256 bytes.
#pragma once
#include "../common/elements.cuh"
#include "../common/reductions.cuh"
#include "linear_cross_entropy.h"

namespace fasttx {

constexpr int kRowLossThreads = 512;

__global__ void __launch_bounds__(kRowLossThreads) linear_cross_entropy_fwd_kernel(LinearCrossEntropyFwdParams p) {
  FTX_SHARED(float, scratch, 2 * kMaxWarps);
  float loss = 0.0f, total = 0.0f;
  for (int64_t i = threadIdx.x; i < p.n_rows; i += kRowLossThreads) {
    loss += p.row_losses[i];
    const int64_t y = p.mean ? p.labels[i] : p.ignore_index;
    if (y == p.ignore_index) continue;
    const bool inside = y >= 0 && y < p.n_cols;
    total += !inside ? NAN : p.weight.data != nullptr ? load_one(p.weight, y) : 1.0f;
  }
  loss = group_reduce<Sum, kRowLossThreads>(loss, scratch);
  total = group_reduce<Sum, kRowLossThreads>(total, scratch + kMaxWarps);
  if (threadIdx.x != 0) return;
  if (!p.mean) total = 1.0f;
  *p.loss = loss / total;
  *p.total_weight = total;
}

}  // namespace fasttx
