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

FTX_DEVICE float masked(float score, uint8_t keep) {
  return keep != 0 ? score : -INFINITY;
}
FTX_DEVICE float masked(float score, double value) {
  return score + static_cast<float>(value);
}
template <class E>
FTX_DEVICE float masked(float score, E value) {
  return score + to_float(value);
}

// Adds the elements of the mask from `at` on to the first `valid` of a run of scores.
template <int kRun, class E>
FTX_DEVICE void add_mask_of(const SoftmaxMask& mask, int64_t at, uint32_t valid, float* s) {
  const E* from = static_cast<const E*>(mask.data) + at;
  E values[kRun];
#pragma unroll
  for (uint32_t i = 0; i < kRun; i++) values[i] = i < valid ? from[i * mask.strides[4]] : E{};
#pragma unroll
  for (uint32_t i = 0; i < kRun; i++) {
    if (i < valid) s[i] = masked(s[i], values[i]);
  }
}

template <int kRun>
FTX_DEVICE void add_mask(const SoftmaxMask& mask, int64_t at, uint32_t valid, float* s) {
  switch (mask.dtype) {
    case DType::kBool:
      return add_mask_of<kRun, uint8_t>(mask, at, valid, s);
    case DType::kFloat32:
      return add_mask_of<kRun, float>(mask, at, valid, s);
    case DType::kFloat16:
      return add_mask_of<kRun, __half>(mask, at, valid, s);
    case DType::kBFloat16:
      return add_mask_of<kRun, __nv_bfloat16>(mask, at, valid, s);
    default:
      return add_mask_of<kRun, double>(mask, at, valid, s);
  }
}

// The scores of one row: scale x (+ mask), -inf beyond its end. kMasked: there is a mask.
template <class T, int kGroup, int kRun, bool kMasked>
struct Scores {
  using Tile = RowTile<T, kGroup, kSoftmaxItems, kRun>;
  static constexpr int kMaskRun = kRun < 8 ? kRun : 8;  // of a mask in registers, where elements may have 8 bytes
  const RowPlace<kGroup>& at;
  const T* x;
  bool aligned, is_factor;  // the scale: only then a tile is taken as whole
  uint32_t n_cols;
  float scale;
  const SoftmaxMask& mask;
  int64_t mask_base;

  FTX_DEVICE Scores(const RowPlace<kGroup>& at, const void* x, int64_t row, int64_t stride, int64_t n_cols, float scale,
                    const SoftmaxMask& mask)
      : at(at),
        x(static_cast<const T*>(x) + row * stride),
        aligned(is_vector_aligned(this->x)),
        is_factor(scale > 0.0f),
        n_cols(static_cast<uint32_t>(n_cols)),
        scale(scale),
        mask(mask),
        mask_base(kMasked ? mask_row(mask, static_cast<uint32_t>(row)) : 0) {}

  template <class Whole>
  FTX_DEVICE void read(Whole whole, uint32_t start, Tile& tile) const {
    tile.read(whole, at, x, start, 0, n_cols, aligned);
  }

  // Makes scores of what was read, but for the factor that is returned. Of a whole tile without a mask that is the
  // scale, which then meets the difference from the maximum in one operation.
  template <class Whole>
  FTX_DEVICE float finish(Whole whole, uint32_t start, float (&s)[kSoftmaxItems]) const {
    if (!kMasked && whole) return scale;
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) s[i] *= scale;
    if constexpr (kMasked) {
#pragma unroll
      for (int item = 0; item < kSoftmaxItems; item += kMaskRun) {
        const uint32_t col = at.template column<kRun>(start, item / kRun * kRun) + item % kRun;
        const int64_t first = mask_base + static_cast<int64_t>(col) * mask.strides[4];
        add_mask<kMaskRun>(mask, first, left_of(n_cols, col), s + item);
      }
    }
    fill_outside<kRun>(whole, at, start, 0, n_cols, -INFINITY, s);
    return 1.0f;
  }
};

// Where a mask leaves a row without a score l is 1; elsewhere 0 / 0 and -inf + inf give the NaN that PyTorch gives.
template <bool kMasked>
FTX_DEVICE float safe_sum(const OnlineSum& sum) {
  return kMasked && sum.l == 0.0f ? 1.0f : sum.l;
}

template <int kRun, int kGroup, class Whole, class T>
FTX_DEVICE void store_tile(Whole whole, const RowPlace<kGroup>& at, T* out, uint32_t start, uint32_t n_cols,
                           bool aligned, const float (&values)[kSoftmaxItems]) {
#pragma unroll
  for (int item = 0; item < kSoftmaxItems; item += kRun) {
    const uint32_t col = at.template column<kRun>(start, item);
    store_run<kRun>(out + col, whole ? kRun : left_of(n_cols, col), whole || aligned, values + item);
  }
}

template <class T, int kGroup, Form kForm, bool kDropout, bool kMasked>
FTX_DEVICE void softmax_fwd_row(const SoftmaxFwdParams& p, float* partials, float* of_blocks) {
  constexpr int kRun = kDropout ? kDropoutRun : kVectorWidth<T>;
  constexpr bool kOneLoop = kDropout || kMasked;
  const RowPlace<kGroup> at;
  const RowSection<kForm, T, kGroup, kSoftmaxItems> section(at.row, p.n_cols);
  const int64_t row = section.row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  [[maybe_unused]] auto exchange = cluster_exchange<kForm == Form::kHeld, 2>(of_blocks);
  const Scores<T, kGroup, kRun, kMasked> scores(at, p.x, row, p.stride_xm, p.n_cols, p.scale, p.mask);
  T* out = static_cast<T*>(p.out) + row * p.n_cols;
  const bool out_aligned = is_vector_aligned(out), aligned = scores.aligned && scores.is_factor && out_aligned;
  float s[kSoftmaxItems], factor = 1.0f;  // scores are factor * s
  auto load = [&](auto pass, auto whole, uint32_t start) {
    RowTile<T, kGroup, kSoftmaxItems, kRun> tile;
    section.load(pass, start, tile, [&](auto& into) { scores.read(whole, start, into); });
    tile.widen(s);
    factor = scores.finish(whole, start, s);
  };

  OnlineSum sum;
  section.template each_tile<kOneLoop>(aligned, [&](auto whole, uint32_t start) {
    load(kFirstPass, whole, start);
    sum.add_scaled<kSoftmaxItems>(s, factor, [](float) {}, [](int, float) {});
  });
  if constexpr (kForm == Form::kHeld) {
    sum.reduce_part<kGroup>(partials);
    reduce_over_cluster(exchange, sum, [](uint32_t, float, float) {});
  } else {
    sum.reduce<kGroup>(partials);
  }

  const float l = safe_sum<kMasked>(sum), inv_l = __fdividef(1.0f, l), log_l = logf(l);
  section.template each_tile<kOneLoop>(aligned, [&](auto whole, uint32_t start) {
    if constexpr (kForm != Form::kResident) load(kSecondPass, whole, start);
    if (p.log) {
#pragma unroll
      for (int i = 0; i < kSoftmaxItems; i++) s[i] = fmaf(s[i], factor, -sum.m) - log_l;
    } else {
#pragma unroll
      for (int i = 0; i < kSoftmaxItems; i++) s[i] = exp_ftz(fmaf(s[i], factor, -sum.m)) * inv_l;
    }
    if constexpr (kDropout) {
      RowDropout(p.rng_state, kSoftmaxTag, p.threshold, p.keep_scale).apply(row, at.template column<kRun>(start, 0), s);
    }
    store_tile<kRun>(whole, at, out, start, scores.n_cols, out_aligned, s);
  });
}

template <class T, int kGroup, Form kForm, bool kDropout>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup, kForm))
    softmax_fwd_kernel(SoftmaxFwdParams p) {
  FTX_SHARED(float, partials, 2 * kMaxWarps);
  FTX_SHARED(float, of_blocks, kForm == Form::kHeld ? 2 * kMaxCluster : 1);
  if (p.mask.data == nullptr) {  // asked once: two forms of all that follows
    softmax_fwd_row<T, kGroup, kForm, kDropout, false>(p, partials, of_blocks);
  } else {
    softmax_fwd_row<T, kGroup, kForm, kDropout, true>(p, partials, of_blocks);
  }
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
  const bool dx_aligned = is_vector_aligned(dx), aligned = saved_aligned && dout_aligned && dx_aligned;
  const bool constants = p.log && p.mask.data != nullptr;  // masked elements of a log row are the constant -inf
  float o[kSoftmaxItems], d[kSoftmaxItems];
  auto load = [&](auto pass, auto whole, uint32_t start) {
    RowTile<T, kGroup, kSoftmaxItems> of_saved, of_dout;
    with_known(whole, [&](auto known) {
      section.template load<0>(pass, start, of_saved,
                               [&](auto& tile) { tile.read(known, at, saved, start, 0, n_cols, saved_aligned); });
      section.template load<1>(pass, start, of_dout,
                               [&](auto& tile) { tile.read(known, at, dout, start, 0, n_cols, dout_aligned); });
    });
    of_saved.widen(o);
    of_dout.widen(d);
    if (!constants) return;
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) d[i] = o[i] == -INFINITY ? 0.0f : d[i];
  };

  float total = 0.0f;
  section.each_tile(aligned, [&](auto whole, uint32_t start) {
    load(kFirstPass, whole, start);
    if (p.log) {
#pragma unroll
      for (int i = 0; i < kSoftmaxItems; i++) total += d[i];
    } else {
#pragma unroll
      for (int i = 0; i < kSoftmaxItems; i++) total += d[i] * o[i];
    }
  });
  total = group_reduce<Sum, kGroup>(total, partials);
  if constexpr (kForm == Form::kHeld) total = sum_over_cluster(exchange, total);

  section.each_tile(aligned, [&](auto whole, uint32_t start) {
    if constexpr (kForm != Form::kResident) load(kSecondPass, whole, start);
    if (p.log) {
#pragma unroll
      for (int i = 0; i < kSoftmaxItems; i++) d[i] = p.scale * (d[i] - exp_ftz(o[i]) * total);
    } else {
#pragma unroll
      for (int i = 0; i < kSoftmaxItems; i++) d[i] = p.scale * (o[i] * (d[i] - total));
    }
    store_tile<kRun>(whole, at, dx, start, n_cols, dx_aligned, d);
  });
}

template <class T, int kGroup, Form kForm, bool kMasked>
FTX_DEVICE void softmax_dropout_bwd_row(const SoftmaxBwdParams& p, float* partials, float* of_blocks) {
  constexpr int kRun = kDropoutRun;
  static_assert(kRun == kSoftmaxItems, "a thread draws its columns of a tile by one call");
  constexpr bool kLate = kMasked || kForm == Form::kHeld;  // dout behind x, where registers are short
  const RowPlace<kGroup> at;
  const RowSection<kForm, T, kGroup, kSoftmaxItems, 2> section(at.row, p.n_cols);
  const int64_t row = section.row;
  if (row >= p.n_rows) return;
  [[maybe_unused]] auto exchange = cluster_exchange<kForm == Form::kHeld, 3>(of_blocks);
  const Scores<T, kGroup, kRun, kMasked> scores(at, p.saved, row, p.stride_sm, p.n_cols, p.scale, p.mask);
  const RowDropout dropout(p.rng_state, kSoftmaxTag, p.threshold, p.keep_scale);
  const T* dout = static_cast<const T*>(p.dout) + row * p.stride_dm;
  T* dx = static_cast<T*>(p.dx) + row * p.n_cols;
  const bool dout_aligned = is_vector_aligned(dout), dx_aligned = is_vector_aligned(dx);
  const bool aligned = scores.aligned && scores.is_factor && dout_aligned && dx_aligned;
  float s[kSoftmaxItems], dp[kSoftmaxItems], factor = 1.0f;
  auto load = [&](auto pass, auto whole, uint32_t start) {
    RowTile<T, kGroup, kSoftmaxItems, kRun> of_x, of_dout;
    const auto read_dout = [&] {
      section.template load<1>(pass, start, of_dout,
                               [&](auto& tile) { tile.read(whole, at, dout, start, 0, scores.n_cols, dout_aligned); });
    };
    section.template load<0>(pass, start, of_x, [&](auto& tile) { scores.read(whole, start, tile); });
    if constexpr (!kLate) read_dout();
    of_x.widen(s);
    factor = scores.finish(whole, start, s);
    if constexpr (kLate) read_dout();
    of_dout.widen(dp);
    dropout.apply(row, at.template column<kRun>(start, 0), dp);
  };

  OnlineSum sum;
  float d = 0.0f;  // sum exp(s - m) dp
  section.template each_tile<true>(aligned, [&](auto whole, uint32_t start) {
    load(kFirstPass, whole, start);
    sum.add_scaled<kSoftmaxItems>(s, factor, [&](float alpha) { d *= alpha; }, [&](int i, float e) { d += e * dp[i]; });
  });
  const float own = kForm == Form::kHeld ? sum.reduce_part<kGroup>(partials) : sum.reduce<kGroup>(partials);
  d = group_reduce<Sum, kGroup>(d * own, partials + 2 * kMaxWarps);
  if constexpr (kForm == Form::kHeld) {
    exchange.own[2] = d;
    d = 0.0f;
    reduce_over_cluster(exchange, sum, [&](uint32_t rank, float, float alpha) { d += exchange.of(rank, 2) * alpha; });
  }

  const float inv_l = __fdividef(1.0f, safe_sum<kMasked>(sum)), total = d * inv_l;
  section.template each_tile<true>(aligned, [&](auto whole, uint32_t start) {
    if constexpr (kForm != Form::kResident) load(kSecondPass, whole, start);
#pragma unroll
    for (int i = 0; i < kSoftmaxItems; i++) {
      s[i] = p.scale * (exp_ftz(fmaf(s[i], factor, -sum.m)) * inv_l) * (dp[i] - total);
    }
    store_tile<kRun>(whole, at, dx, start, scores.n_cols, dx_aligned, s);
  });
}

// dx from x: p is recomputed, because out has lost the elements that were dropped.
template <class T, int kGroup, Form kForm>
__global__ void __launch_bounds__(block_threads(kGroup), softmax_blocks(kGroup, kForm))
    softmax_dropout_bwd_kernel(SoftmaxBwdParams p) {
  FTX_SHARED(float, partials, 3 * kMaxWarps);
  FTX_SHARED(float, of_blocks, kForm == Form::kHeld ? 3 * kMaxCluster : 1);
  if (p.mask.data == nullptr) {
    softmax_dropout_bwd_row<T, kGroup, kForm, false>(p, partials, of_blocks);
  } else {
    softmax_dropout_bwd_row<T, kGroup, kForm, true>(p, partials, of_blocks);
  }
}

}  // namespace fasttx
