// Softmax and log-softmax of rows, with scale, mask and row-wise dropout: forward and backward.
//
// Mathematics
//   s = scale x (+ mask),  m = max_j s_j,  l = sum_j exp(s_j - m),  p = exp(s - m) / l,  log p = s - m - log l
//   forward:  out = p,  keep p / (1 - p_hat) with dropout,  or log p
//   backward: ds = p (dp - sum_j dp_j p_j) with dp = dout, or keep dout / (1 - p_hat);
//             log: ds = dout - p sum_j dout_j;   dx = scale ds
//   Each thread keeps (m, l), and d = sum_j exp(s_j - m) dp_j with dropout, of the columns that it reads
//   (common/online_sum.cuh).
//
// Contract
//   A group of kGroup threads computes a row and is its only writer: no atomics, bitwise deterministic. A group is a
//   warp, four of them a block, or a whole block. A thread holds 16 columns, runs of kRun consecutive ones; a row of at
//   most 16 kGroup columns is read once (kStream = false), a longer one twice. 16-byte accesses in rows that begin at a
//   multiple of 16 bytes, single elements in others. A masked row in which every score is -inf gives zeros (-inf with
//   log) and no gradient; without a mask it gives NaN.
//
// Cost
//   Forward 7 flop, backward 5 (12 where p is recomputed) per element, and one more exp per element than there are
//   scores in a register. Bytes: x and out, or dout, saved and dx, once; a second read of a long row from L2 where the
//   rows in flight fit it. Shared memory: 128 bytes a reduction.
#pragma once
#include "../common/online_sum.cuh"
#include "../common/reductions.cuh"
#include "../common/row_dropout.cuh"
#include "../common/rows.cuh"
#include "../common/vectors.cuh"
#include "softmax.h"

namespace fasttx {

constexpr int kSoftmaxItems = 16;  // columns that a thread holds: those of one Philox call

// Blocks a multiprocessor must hold: 512 threads or more, so that up to 80 registers are free. Left to itself ptxas
// squeezes blocks of 512 threads into 40 registers, and spills.
constexpr int softmax_blocks(int group) {
  return 768 / block_threads(group);
}

// Rows are counted in 32 bits: a division of 64 bits would be a call.
FTX_DEVICE int64_t mask_row(const SoftmaxMask& mask, uint32_t row) {
  const uint32_t size1 = mask.sizes[0], size2 = mask.sizes[1], size3 = mask.sizes[2];
  const uint32_t i3 = row % size3, rest = row / size3, i2 = rest % size2, i01 = rest / size2;
  return i01 / size1 * mask.strides[0] + i01 % size1 * mask.strides[1] + i2 * mask.strides[2] + i3 * mask.strides[3];
}

FTX_DEVICE float masked(float score, const SoftmaxMask& mask, int64_t at) {
  switch (mask.dtype) {
    case DType::kBool:
      return static_cast<const uint8_t*>(mask.data)[at] != 0 ? score : -INFINITY;
    case DType::kFloat32:
      return score + static_cast<const float*>(mask.data)[at];
    case DType::kFloat16:
      return score + to_float(static_cast<const __half*>(mask.data)[at]);
    case DType::kBFloat16:
      return score + to_float(static_cast<const __nv_bfloat16*>(mask.data)[at]);
    default:
      return score + static_cast<float>(static_cast<const double*>(mask.data)[at]);
  }
}

// The scores of one row: scale x (+ mask), -inf beyond its end.
template <class T>
struct Scores {
  const T* x;
  bool aligned;
  uint32_t n_cols;
  float scale;
  const SoftmaxMask& mask;
  int64_t mask_base;

  FTX_DEVICE Scores(const void* x, int64_t row, int64_t stride, int64_t n_cols, float scale, const SoftmaxMask& mask)
      : x(static_cast<const T*>(x) + row * stride),
        aligned(is_vector_aligned(this->x)),
        n_cols(static_cast<uint32_t>(n_cols)),
        scale(scale),
        mask(mask),
        mask_base(mask.data != nullptr ? mask_row(mask, static_cast<uint32_t>(row)) : 0) {}

  template <int kRun>
  FTX_DEVICE void load(uint32_t col, float* s) const {
    const uint32_t left = left_of(n_cols, col);
    load_run<kRun>(x + col, left, aligned, s);
#pragma unroll
    for (int i = 0; i < kRun; i++) {
      s[i] *= scale;
      if (static_cast<uint32_t>(i) >= left) {
        s[i] = -INFINITY;
      } else if (mask.data != nullptr) {
        s[i] = masked(s[i], mask, mask_base + static_cast<int64_t>(col + i) * mask.strides[4]);
      }
    }
  }
};

// Where a mask leaves a row without a score l is 1; elsewhere 0 / 0 and -inf + inf give the NaN that PyTorch gives.
FTX_DEVICE float safe_sum(const OnlineSum& sum, const SoftmaxMask& mask) {
  return mask.data != nullptr && sum.l == 0.0f ? 1.0f : sum.l;
}

template <class T, int kGroup, bool kStream, bool kDropout>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup))
    softmax_fwd_kernel(SoftmaxFwdParams p) {
  constexpr int kRun = kDropout ? kDropoutRun : kVectorWidth<T>;
  constexpr uint32_t kTile = kGroup * kSoftmaxItems;
  FTX_SHARED(float, partials, 2 * kMaxWarps);
  const RowPlace<kGroup> at;
  if (at.row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  const Scores<T> scores(p.x, at.row, p.stride_xm, p.n_cols, p.scale, p.mask);
  float s[kSoftmaxItems];
  auto load = [&](uint32_t start) {
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
      scores.template load<kRun>(at.template column<kRun>(start, item), s + item);
    }
  };

  OnlineSum sum;
  for (uint32_t start = 0; kStream ? start < scores.n_cols : start == 0; start += kTile) {
    load(start);
    sum.add<kSoftmaxItems>(s, [](float) {}, [](int, float) {});
  }
  sum.reduce<kGroup>(partials);

  const float l = safe_sum(sum, p.mask), inv_l = __fdividef(1.0f, l), log_l = logf(l);
  T* out = static_cast<T*>(p.out) + at.row * p.n_cols;
  const bool out_aligned = is_vector_aligned(out);
  for (uint32_t start = 0; kStream ? start < scores.n_cols : start == 0; start += kTile) {
    if constexpr (kStream) load(start);
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
#pragma unroll
      for (int i = item; i < item + kRun; i++) s[i] = p.log ? s[i] - sum.m - log_l : __expf(s[i] - sum.m) * inv_l;
      const uint32_t col = at.template column<kRun>(start, item);
      if constexpr (kDropout) {
        RowDropout(p.rng_state, kSoftmaxTag, p.threshold, p.keep_scale).apply(at.row, col, s + item);
      }
      store_run<kRun>(out + col, left_of(scores.n_cols, col), out_aligned, s + item);
    }
  }
}

// dx from out, without dropout.
template <class T, int kGroup, bool kStream>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup))
    softmax_bwd_kernel(SoftmaxBwdParams p) {
  constexpr int kRun = kVectorWidth<T>;
  constexpr uint32_t kTile = kGroup * kSoftmaxItems;
  FTX_SHARED(float, partials, kMaxWarps);
  const RowPlace<kGroup> at;
  if (at.row >= p.n_rows) return;
  const uint32_t n_cols = static_cast<uint32_t>(p.n_cols);
  const T* saved = static_cast<const T*>(p.saved) + at.row * p.stride_sm;
  const T* dout = static_cast<const T*>(p.dout) + at.row * p.stride_dm;
  T* dx = static_cast<T*>(p.dx) + at.row * p.n_cols;
  const bool saved_aligned = is_vector_aligned(saved), dout_aligned = is_vector_aligned(dout);
  const bool dx_aligned = is_vector_aligned(dx);
  const bool constants = p.log && p.mask.data != nullptr;  // masked elements of a log row are the constant -inf
  float o[kSoftmaxItems], d[kSoftmaxItems];
  auto load = [&](uint32_t start) {
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
      const uint32_t col = at.template column<kRun>(start, item), left = left_of(n_cols, col);
      load_run<kRun>(saved + col, left, saved_aligned, o + item);
      load_run<kRun>(dout + col, left, dout_aligned, d + item);
    }
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) {
      if (constants && o[i] == -INFINITY) d[i] = 0.0f;
    }
  };

  float total = 0.0f;
  for (uint32_t start = 0; kStream ? start < n_cols : start == 0; start += kTile) {
    load(start);
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) total += p.log ? d[i] : d[i] * o[i];
  }
  total = group_reduce<Sum, kGroup>(total, partials);

  for (uint32_t start = 0; kStream ? start < n_cols : start == 0; start += kTile) {
    if constexpr (kStream) load(start);
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
#pragma unroll
      for (int i = item; i < item + kRun; i++) {
        d[i] = p.scale * (p.log ? d[i] - __expf(o[i]) * total : o[i] * (d[i] - total));
      }
      const uint32_t col = at.template column<kRun>(start, item);
      store_run<kRun>(dx + col, left_of(n_cols, col), dx_aligned, d + item);
    }
  }
}

// dx from x: p is recomputed, because out has lost the elements that were dropped.
template <class T, int kGroup, bool kStream>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup))
    softmax_dropout_bwd_kernel(SoftmaxBwdParams p) {
  constexpr int kRun = kDropoutRun;
  static_assert(kRun == kSoftmaxItems, "a thread draws its columns of a tile by one call");
  constexpr uint32_t kTile = kGroup * kSoftmaxItems;
  FTX_SHARED(float, partials, 3 * kMaxWarps);
  const RowPlace<kGroup> at;
  if (at.row >= p.n_rows) return;
  const Scores<T> scores(p.saved, at.row, p.stride_sm, p.n_cols, p.scale, p.mask);
  const RowDropout dropout(p.rng_state, kSoftmaxTag, p.threshold, p.keep_scale);
  const T* dout = static_cast<const T*>(p.dout) + at.row * p.stride_dm;
  T* dx = static_cast<T*>(p.dx) + at.row * p.n_cols;
  const bool dout_aligned = is_vector_aligned(dout), dx_aligned = is_vector_aligned(dx);
  float s[kSoftmaxItems], dp[kSoftmaxItems];
  auto load = [&](uint32_t start) {
    const uint32_t col = at.template column<kRun>(start, 0);
    scores.template load<kRun>(col, s);
    load_run<kRun>(dout + col, left_of(scores.n_cols, col), dout_aligned, dp);
    dropout.apply(at.row, col, dp);
  };

  OnlineSum sum;
  float d = 0.0f;  // sum exp(s - m) dp
  for (uint32_t start = 0; kStream ? start < scores.n_cols : start == 0; start += kTile) {
    load(start);
    sum.add<kSoftmaxItems>(s, [&](float alpha) { d *= alpha; }, [&](int i, float e) { d += e * dp[i]; });
  }
  const float own = sum.reduce<kGroup>(partials);
  d = group_reduce<Sum, kGroup>(d * own, partials + 2 * kMaxWarps);

  const float inv_l = __fdividef(1.0f, safe_sum(sum, p.mask)), total = d * inv_l;
  for (uint32_t start = 0; kStream ? start < scores.n_cols : start == 0; start += kTile) {
    if constexpr (kStream) load(start);
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) {
      s[i] = p.scale * (__expf(s[i] - sum.m) * inv_l) * (dp[i] - total);
    }
    const uint32_t col = at.template column<kRun>(start, 0);
    store_run<kRun>(dx + col, left_of(scores.n_cols, col), dx_aligned, s);
  }
}

}  // namespace fasttx
