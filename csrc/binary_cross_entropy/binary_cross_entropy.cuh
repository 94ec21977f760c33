// Binary cross-entropy with logits, element by element: forward and backward.
//
// Mathematics
//   With softplus(-x) = max(-x, 0) + log(1 + exp(-|x|)), targets y, weights w and weights v of the positive class:
//   loss = w ((1 - y) x + (1 + (v - 1) y) softplus(-x)),   dx = w ((v y + 1 - y) sigmoid(x) - v y)
//   dx is multiplied by dloss, and for a mean by 1 / n. Nothing exponentiates a positive number.
//
// Contract
//   A block takes every gridDim.x-th tile of 2,048 elements, a thread 8 neighbouring ones of it. 16-byte accesses of
//   tensors that begin at a multiple of 16 bytes, single elements of others and in the last run. A mean or a sum leaves
//   one partial sum a block, of as many blocks as the workspace has room for: no atomics, bitwise deterministic.
//
// Cost
//   About 10 flop, an exponential and a logarithm (forward) or a reciprocal (backward) an element; x, y and the weights
//   are read once, dx, or n losses, written once. Shared memory: 128 bytes.
#pragma once
#include "../common/elements.cuh"
#include "../common/reductions.cuh"
#include "../common/vectors.cuh"
#include "binary_cross_entropy.h"

namespace fasttx {

constexpr int kBceThreads = 256;
constexpr int kBceRun = 8;
constexpr int kBceTile = kBceThreads * kBceRun;
constexpr int64_t kMaxPeriod = int64_t{1} << 20;

// 1 where there is no weight. i: the first element of the run, in tile `tile`.
FTX_DEVICE void load_weight(const RepeatedWeight& weight, uint32_t tile, int64_t i, uint32_t valid, int64_t n,
                            float* out) {
  if (weight.values.data == nullptr) {
#pragma unroll
    for (int k = 0; k < kBceRun; k++) out[k] = 1.0f;
  } else if (weight.period == n) {
    load_part<kBceRun>(weight.values, i, 0, valid, out);
  } else {
    // i % period in 32 bits: the product is below 2^20 * 2^11, and a remainder of 64 bits would be a call
    const uint32_t period = static_cast<uint32_t>(weight.period);
    uint32_t at = (tile % period * (kBceTile % period) + threadIdx.x * kBceRun) % period;
    if (period % kBceRun == 0) return load_part<kBceRun>(weight.values, at, 0, kBceRun, out);
#pragma unroll
    for (int k = 0; k < kBceRun; k++) {
      out[k] = load_one(weight.values, at);
      at = at + 1 == period ? 0 : at + 1;
    }
  }
}

// The runs of x, y, w and v of one thread in one tile; zeros beyond the end in x and y.
template <class T>
struct BceRun {
  int64_t first;
  uint32_t valid;
  float x[kBceRun], y[kBceRun], w[kBceRun], v[kBceRun];

  template <class Params>
  FTX_DEVICE BceRun(const Params& p, int64_t tile) : first(tile * kBceTile + threadIdx.x * kBceRun) {
    const int64_t left = p.n - first;
    valid = left <= 0 ? 0 : left >= kBceRun ? kBceRun : static_cast<uint32_t>(left);
    const T* x_run = static_cast<const T*>(p.x) + first;
    load_run<kBceRun>(x_run, valid, is_vector_aligned(x_run), x);
    load_part<kBceRun>(p.target, first, 0, valid, y);
    load_weight(p.weight, static_cast<uint32_t>(tile), first, valid, p.n, w);
    load_weight(p.pos_weight, static_cast<uint32_t>(tile), first, valid, p.n, v);
  }
};

template <class T>
__global__ void __launch_bounds__(kBceThreads) binary_cross_entropy_fwd_kernel(BinaryCrossEntropyFwdParams p) {
  FTX_SHARED(float, scratch, kMaxWarps);
  const int64_t tiles = (p.n + kBceTile - 1) / kBceTile;
  float total = 0.0f;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    BceRun<T> run(p, tile);
#pragma unroll
    for (int k = 0; k < kBceRun; k++) {
      const float x = run.x[k], y = run.y[k];
      const float softplus = fmaxf(-x, 0.0f) + log1pf(expf(-fabsf(x)));
      run.x[k] = run.w[k] * ((1.0f - y) * x + (1.0f + (run.v[k] - 1.0f) * y) * softplus);
      if (static_cast<uint32_t>(k) < run.valid) total += run.x[k];
    }
    if (p.partials == nullptr) {
      float* loss = p.loss + run.first;
      store_run<kBceRun>(loss, run.valid, is_vector_aligned(loss), run.x);
    }
  }
  if (p.partials == nullptr) return;
  total = group_reduce<Sum, kBceThreads>(total, scratch);
  if (threadIdx.x == 0) p.partials[blockIdx.x] = total;
}

template <class T>
__global__ void __launch_bounds__(kBceThreads) binary_cross_entropy_bwd_kernel(BinaryCrossEntropyBwdParams p) {
  const int64_t tiles = (p.n + kBceTile - 1) / kBceTile;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    BceRun<T> run(p, tile);
    float dloss[kBceRun];
    if (p.one_dloss) {
#pragma unroll
      for (int k = 0; k < kBceRun; k++) dloss[k] = *p.dloss;
    } else {
      const float* from = p.dloss + run.first;
      load_run<kBceRun>(from, run.valid, is_vector_aligned(from), dloss);
    }
#pragma unroll
    for (int k = 0; k < kBceRun; k++) {
      const float x = run.x[k], y = run.y[k], vy = run.v[k] * y, e = expf(-fabsf(x));
      const float sigmoid = __fdividef(x < 0.0f ? e : 1.0f, 1.0f + e);
      run.x[k] = run.w[k] * ((vy + 1.0f - y) * sigmoid - vy) * (dloss[k] * p.scale);
    }
    T* dx = static_cast<T*>(p.dx) + run.first;
    store_run<kBceRun>(dx, run.valid, is_vector_aligned(dx), run.x);
  }
}

}  // namespace fasttx
