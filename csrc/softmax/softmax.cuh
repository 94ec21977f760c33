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
//   A group of kGroup threads, a warp to a block, computes a row or, of a row that a cluster holds, a section, and is
//   its only writer: no atomics, bitwise deterministic. Blocks of a cluster add up in the order of their ranks; how
//   many they are depends on the row's length, the number of rows and the device, and the last bits depend on that. A
//   thread holds 16 columns of a tile, runs of kRun consecutive ones. A row of one tile is read once, and so is one
//   whose other tiles the cluster's shared memory holds; else it is read twice (common/row_section.cuh, held_launch.h).
//   16-byte accesses in rows that begin at a multiple of 16 bytes, single elements in others. A masked row in which
//   every score is -inf gives zeros (-inf with log) and no gradient; without a mask it gives NaN.
//
// Cost
//   Forward 7 flop, backward 5 (12 where p is recomputed) per element, and one more exp per element than there are
//   scores in a register. Bytes: x and out, or dout, saved and dx, once; a second read of a streamed row from L2 where
//   the rows in flight fit it. Masks are read in both passes. Shared memory: 128 bytes a reduction, 32 bytes a value
//   that the blocks of a cluster exchange, and a held section of each tensor that is read.
#pragma once
#include "../common/cluster_reduction.cuh"
#include "../common/online_sum.cuh"
#include "../common/reductions.cuh"
#include "../common/row_dropout.cuh"
#include "../common/row_section.cuh"
#include "../common/rows.cuh"
#include "../common/vectors.cuh"
#include "softmax.h"

namespace fasttx {

constexpr int kSoftmaxItems = 16;  // columns that a thread holds: those of one Philox call

// Blocks a multiprocessor must hold: 512 threads or more, so that up to 80 registers are free. Left to itself ptxas
// squeezes blocks of 512 threads into 40 registers, and spills. Two blocks where shared memory is shared out for two.
constexpr int softmax_blocks(int group, Form form) {
  return form == Form::kHeld ? 2 : 768 / block_threads(group);
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
  FTX_DEVICE void read(uint32_t col, float* s) const {
    load_run<kRun>(x + col, left_of(n_cols, col), aligned, s);
  }

  // Makes scores of what was read.
  template <int kRun>
  FTX_DEVICE void finish(uint32_t col, float* s) const {
    const uint32_t left = left_of(n_cols, col);
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

template <class T, int kGroup, Form kForm, bool kDropout>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup, kForm))
    softmax_fwd_kernel(SoftmaxFwdParams p) {
  constexpr int kRun = kDropout ? kDropoutRun : kVectorWidth<T>;
  FTX_SHARED(float, partials, 2 * kMaxWarps);
  FTX_SHARED(float, of_blocks, kForm == Form::kHeld ? 2 * kMaxCluster : 1);
  const RowPlace<kGroup> at;
  const RowSection<kForm, T, kGroup, kSoftmaxItems> section(at.row, p.n_cols);
  const int64_t row = section.row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  [[maybe_unused]] auto exchange = cluster_exchange<kForm == Form::kHeld, 2>(of_blocks);
  const Scores<T> scores(p.x, row, p.stride_xm, p.n_cols, p.scale, p.mask);
  float s[kSoftmaxItems];
  auto load = [&](auto pass, uint32_t start) {
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
      const uint32_t col = at.template column<kRun>(start, item);
      section.template load<kRun>(pass, start, item, s + item,
                                  [&](float* out) { scores.template read<kRun>(col, out); });
      scores.template finish<kRun>(col, s + item);
    }
  };

  OnlineSum sum;
  section.each_tile([&](uint32_t start) {
    load(kFirstPass, start);
    sum.add<kSoftmaxItems>(s, [](float) {}, [](int, float) {});
  });
  if constexpr (kForm == Form::kHeld) {
    sum.reduce_part<kGroup>(partials);
    reduce_over_cluster(exchange, sum, [](uint32_t, float, float) {});
  } else {
    sum.reduce<kGroup>(partials);
  }

  const float l = safe_sum(sum, p.mask), inv_l = __fdividef(1.0f, l), log_l = logf(l);
  T* out = static_cast<T*>(p.out) + row * p.n_cols;
  const bool out_aligned = is_vector_aligned(out);
  section.each_tile([&](uint32_t start) {
    if constexpr (kForm != Form::kResident) load(kSecondPass, start);
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
#pragma unroll
      for (int i = item; i < item + kRun; i++) s[i] = p.log ? s[i] - sum.m - log_l : __expf(s[i] - sum.m) * inv_l;
      const uint32_t col = at.template column<kRun>(start, item);
      if constexpr (kDropout) {
        RowDropout(p.rng_state, kSoftmaxTag, p.threshold, p.keep_scale).apply(row, col, s + item);
      }
      store_run<kRun>(out + col, left_of(scores.n_cols, col), out_aligned, s + item);
    }
  });
}

// dx from out, without dropout.
template <class T, int kGroup, Form kForm>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup, kForm))
    softmax_bwd_kernel(SoftmaxBwdParams p) {
  constexpr int kRun = kVectorWidth<T>;
  FTX_SHARED(float, partials, kMaxWarps);
  FTX_SHARED(float, of_blocks, kForm == Form::kHeld ? kMaxCluster : 1);
  const RowPlace<kGroup> at;
  const RowSection<kForm, T, kGroup, kSoftmaxItems, 2> section(at.row, p.n_cols);
  const int64_t row = section.row;
  if (row >= p.n_rows) return;
  [[maybe_unused]] auto exchange = cluster_exchange<kForm == Form::kHeld, 1>(of_blocks);
  const uint32_t n_cols = static_cast<uint32_t>(p.n_cols);
  const T* saved = static_cast<const T*>(p.saved) + row * p.stride_sm;
  const T* dout = static_cast<const T*>(p.dout) + row * p.stride_dm;
  T* dx = static_cast<T*>(p.dx) + row * p.n_cols;
  const bool saved_aligned = is_vector_aligned(saved), dout_aligned = is_vector_aligned(dout);
  const bool dx_aligned = is_vector_aligned(dx);
  const bool constants = p.log && p.mask.data != nullptr;  // masked elements of a log row are the constant -inf
  float o[kSoftmaxItems], d[kSoftmaxItems];
  auto load = [&](auto pass, uint32_t start) {
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
      const uint32_t col = at.template column<kRun>(start, item), left = left_of(n_cols, col);
      section.template load<kRun, 0>(pass, start, item, o + item,
                                     [&](float* out) { load_run<kRun>(saved + col, left, saved_aligned, out); });
      section.template load<kRun, 1>(pass, start, item, d + item,
                                     [&](float* out) { load_run<kRun>(dout + col, left, dout_aligned, out); });
    }
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) {
      if (constants && o[i] == -INFINITY) d[i] = 0.0f;
    }
  };

  float total = 0.0f;
  section.each_tile([&](uint32_t start) {
    load(kFirstPass, start);
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) total += p.log ? d[i] : d[i] * o[i];
  });
  total = group_reduce<Sum, kGroup>(total, partials);
  if constexpr (kForm == Form::kHeld) total = sum_over_cluster(exchange, total);

  section.each_tile([&](uint32_t start) {
    if constexpr (kForm != Form::kResident) load(kSecondPass, start);
#pragma unroll
    for (int item = 0; item < kSoftmaxItems; item += kRun) {
#pragma unroll
      for (int i = item; i < item + kRun; i++) {
        d[i] = p.scale * (p.log ? d[i] - __expf(o[i]) * total : o[i] * (d[i] - total));
      }
      const uint32_t col = at.template column<kRun>(start, item);
      store_run<kRun>(dx + col, left_of(n_cols, col), dx_aligned, d + item);
    }
  });
}

// dx from x: p is recomputed, because out has lost the elements that were dropped.
template <class T, int kGroup, Form kForm>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup, kForm))
    softmax_dropout_bwd_kernel(SoftmaxBwdParams p) {
  constexpr int kRun = kDropoutRun;
  static_assert(kRun == kSoftmaxItems, "a thread draws its columns of a tile by one call");
  FTX_SHARED(float, partials, 3 * kMaxWarps);
  FTX_SHARED(float, of_blocks, kForm == Form::kHeld ? 3 * kMaxCluster : 1);
  const RowPlace<kGroup> at;
  const RowSection<kForm, T, kGroup, kSoftmaxItems, 2> section(at.row, p.n_cols);
  const int64_t row = section.row;
  if (row >= p.n_rows) return;
  [[maybe_unused]] auto exchange = cluster_exchange<kForm == Form::kHeld, 3>(of_blocks);
  const Scores<T> scores(p.saved, row, p.stride_sm, p.n_cols, p.scale, p.mask);
  const RowDropout dropout(p.rng_state, kSoftmaxTag, p.threshold, p.keep_scale);
  const T* dout = static_cast<const T*>(p.dout) + row * p.stride_dm;
  T* dx = static_cast<T*>(p.dx) + row * p.n_cols;
  const bool dout_aligned = is_vector_aligned(dout), dx_aligned = is_vector_aligned(dx);
  float s[kSoftmaxItems], dp[kSoftmaxItems];
  auto load = [&](auto pass, uint32_t start) {
    const uint32_t col = at.template column<kRun>(start, 0), left = left_of(scores.n_cols, col);
    section.template load<kRun, 0>(pass, start, 0, s, [&](float* out) { scores.template read<kRun>(col, out); });
    section.template load<kRun, 1>(pass, start, 0, dp,
                                   [&](float* out) { load_run<kRun>(dout + col, left, dout_aligned, out); });
    scores.template finish<kRun>(col, s);
    dropout.apply(row, col, dp);
  };

  OnlineSum sum;
  float d = 0.0f;  // sum exp(s - m) dp
  section.each_tile([&](uint32_t start) {
    load(kFirstPass, start);
    sum.add<kSoftmaxItems>(s, [&](float alpha) { d *= alpha; }, [&](int i, float e) { d += e * dp[i]; });
  });
  const float own = kForm == Form::kHeld ? sum.reduce_part<kGroup>(partials) : sum.reduce<kGroup>(partials);
  d = group_reduce<Sum, kGroup>(d * own, partials + 2 * kMaxWarps);
  if constexpr (kForm == Form::kHeld) {
    exchange.own[2] = d;
    d = 0.0f;
    reduce_over_cluster(exchange, sum, [&](uint32_t rank, float, float alpha) { d += exchange.of(rank, 2) * alpha; });
  }

  const float inv_l = __fdividef(1.0f, safe_sum(sum, p.mask)), total = d * inv_l;
  section.each_tile([&](uint32_t start) {
    if constexpr (kForm != Form::kResident) load(kSecondPass, start);
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) {
      s[i] = p.scale * (__expf(s[i] - sum.m) * inv_l) * (dp[i] - total);
    }
    const uint32_t col = at.template column<kRun>(start, 0);
    store_run<kRun>(dx + col, left_of(scores.n_cols, col), dx_aligned, s);
  });
}

}  // namespace fasttx
