// Kullback-Leibler divergence from log-probabilities, element by element: forward and backward.
//
// Mathematics
//   Of log-probabilities x and targets t, which are probabilities, or logarithms of them where kLog:
//   loss = t log t - t x, 0 log 0 = 0,   dx = -t
//   loss = exp(t) (t - x),               dx = -exp(t)     (kLog)
//   dx is multiplied by dloss, and for a mean by 1 / its divisor.
//
// Contract
//   A block takes every gridDim.x-th tile of 2,048 elements, a thread 8 neighbouring ones of it. 16-byte accesses of
//   tensors that begin at a multiple of 16 bytes, single elements of others and in the last run. A sum leaves one
//   partial sum a block, of as many blocks as the workspace has room for: no atomics, bitwise deterministic. Backward
//   does not read x.
//
// Cost
//   About 4 flop and a logarithm or an exponential an element; x and t are read once, dx, or n losses, written once.
//   Shared memory: 128 bytes.
#pragma once
#include "../common/elements.cuh"
#include "../common/reductions.cuh"
#include "kl_div.h"

namespace fasttx {

constexpr int kKlThreads = 256;
constexpr int kKlRun = 8;
constexpr int kKlTile = kKlThreads * kKlRun;

// The run of one thread in one tile: its first element, and how many of its elements exist.
struct KlRun {
  int64_t first;
  uint32_t valid;

  FTX_DEVICE KlRun(int64_t n, int64_t tile) : first(tile * kKlTile + threadIdx.x * kKlRun) {
    const int64_t left = n - first;
    valid = left <= 0 ? 0 : left >= kKlRun ? kKlRun : static_cast<uint32_t>(left);
  }
};

template <bool kLog>
FTX_DEVICE float kl_loss(float x, float t) {
  if constexpr (kLog) return expf(t) * (t - x);
  return (t == 0.0f ? 0.0f : t * logf(t)) - t * x;
}

template <class T, bool kLog>
__global__ void __launch_bounds__(kKlThreads) kl_div_fwd_kernel(KlDivFwdParams p) {
  FTX_SHARED(float, scratch, kMaxWarps);
  const int64_t tiles = (p.n + kKlTile - 1) / kKlTile;
  float total = 0.0f;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const KlRun run(p.n, tile);
    float x[kKlRun], t[kKlRun];
    const T* from = static_cast<const T*>(p.x) + run.first;
    load_run<kKlRun>(from, run.valid, is_vector_aligned(from), x);
    load_part<kKlRun>(p.target, run.first, 0, run.valid, t);
#pragma unroll
    for (int k = 0; k < kKlRun; k++) {
      x[k] = kl_loss<kLog>(x[k], t[k]);
      total += x[k];  // beyond the tensor x = t = 0, whose loss is 0
    }
    if (p.partials == nullptr) {
      float* loss = p.loss + run.first;
      store_run<kKlRun>(loss, run.valid, is_vector_aligned(loss), x);
    }
  }
  if (p.partials == nullptr) return;
  total = group_reduce<Sum, kKlThreads>(total, scratch);
  if (threadIdx.x == 0) p.partials[blockIdx.x] = total;
}

template <class T, bool kLog>
__global__ void __launch_bounds__(kKlThreads) kl_div_bwd_kernel(KlDivBwdParams p) {
  const KlRun run(p.n, blockIdx.x);
  float t[kKlRun], dloss[kKlRun];
  load_part<kKlRun>(p.target, run.first, 0, run.valid, t);
  if (p.one_dloss) {
#pragma unroll
    for (int k = 0; k < kKlRun; k++) dloss[k] = *p.dloss;
  } else {
    const float* from = p.dloss + run.first;
    load_run<kKlRun>(from, run.valid, is_vector_aligned(from), dloss);
  }
#pragma unroll
  for (int k = 0; k < kKlRun; k++) t[k] = -(kLog ? expf(t[k]) : t[k]) * (dloss[k] * p.scale);
  T* dx = static_cast<T*>(p.dx) + run.first;
  store_run<kKlRun>(dx, run.valid, is_vector_aligned(dx), t);
}

}  // namespace fasttx
