// Cross-entropy over rows of logits, against class indices or probabilities: forward and backward.
//
// Mathematics
//   lse = log sum_j exp(x_j), p = exp(x - lse), class weights w (1 where there are none), smoothing e, C columns.
//   class index y:    loss = (1 - e) w_y (lse - x_y) + e/C sum_j w_j (lse - x_j),   dx = a p - b, with
//                     a = (1 - e) w_y + e/C sum_j w_j,   b_j = e/C w_j + [j = y] (1 - e) w_y
//   probabilities q:  t_j = w_j ((1 - e) q_j + e/C),   loss = sum_j t_j (lse - x_j),   dx = p sum_j t_j - t
//   dx is multiplied by dloss / total_weight. Sums of t_j x_j, or w_j x_j, are kept relative to the running maximum m
//   of common/online_sum.cuh: s = sum_j t_j (x_j - m), c = sum_j t_j, and s += (m_old - m_new) c where it moves.
//
// Contract
//   A group of kGroup threads computes a row (forward), or every gridDim.y-th tile of it (backward, class indices), and
//   is its only writer: no atomics, bitwise deterministic. A group is a thread, a warp, or a block of 256. Where rows
//   are few and long, each block of a cluster reads every cluster_size()-th tile of a row (forward), they add up in the
//   order of their ranks, and the first one writes: the last bits depend on how many they are. A thread holds 16
//   columns of a tile, runs of 16 bytes. Tiles begin at the multiple of 16 bytes at or before the row's first element:
//   all but its first and last run are 16-byte accesses, whatever the row's address is; those of probabilities, weights
//   and dx where they lie likewise. A mean or a sum leaves two partial sums a block. An ignored row is not read: loss,
//   lse and dx are 0. An index outside the classes that is not ignored makes loss, total_weight and dx of the row NaN;
//   nothing outside is read.
//
// Cost
//   Forward 4 flop an element and 1 + 1/16 exponentials, one read of x, and of q; backward 4 flop, one exponential, one
//   read of x, one write of dx; q is read twice, the second time from L1 or L2. Shared memory: 128 bytes a reduction.
#pragma once
#include "../common/cluster_reduction.cuh"
#include "../common/elements.cuh"
#include "../common/online_sum.cuh"
#include "../common/row_tile.cuh"
#include "cross_entropy.h"

namespace fasttx {

constexpr int kLossItems = 16;  // columns that a thread holds

// Blocks a multiprocessor must hold: 768 threads, so that 80 registers are free. Left to itself ptxas stops at 64, and
// spills some of 16 bytes on sm_100 and sm_120.
constexpr int loss_blocks(int group) {
  return 768 / block_threads(group);
}

// t_j for probabilities, else w_j, of the columns of one row by their positions.
struct Coefficients {
  In weight, probabilities;
  int64_t weight_origin, origin;  // of position 0; elements before the row's first are not read
  float keep, per_class;

  template <class Params>
  FTX_DEVICE Coefficients(const Params& p, int64_t row, uint32_t shift)
      : weight(p.weight),
        probabilities(p.probabilities),
        weight_origin(-static_cast<int64_t>(shift)),
        origin(row * p.stride_tm - shift),
        keep(1.0f - p.smoothing),
        per_class(p.smoothing / static_cast<float>(p.n_cols)) {}

  template <int kRun>
  FTX_DEVICE void load(uint32_t position, uint32_t low, uint32_t high, float* t) const {
    if (weight.data != nullptr) {
      load_part<kRun>(weight, weight_origin + position, low, high, t);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kRun; i++) t[i] = i >= low && i < high ? 1.0f : 0.0f;
    }
    if (probabilities.data != nullptr) {
      float q[kRun];
      load_part<kRun>(probabilities, origin + position, low, high, q);
#pragma unroll
      for (int i = 0; i < kRun; i++) t[i] *= q[i] * keep + per_class;
    }
  }
};

// kWithSum: probabilities or smoothing, for which all columns have a coefficient. kCluster: a row has several blocks.
template <class T, int kGroup, bool kWithSum, bool kCluster>
__global__ void __launch_bounds__(block_threads(kGroup), loss_blocks(kGroup))
    cross_entropy_fwd_kernel(CrossEntropyFwdParams p) {
  constexpr int kRun = kVectorWidth<T>;
  constexpr uint32_t kTile = kGroup * kLossItems;
  FTX_SHARED(float, scratch, 4 * kMaxWarps);
  FTX_SHARED(float, of_blocks, kCluster ? 4 * kMaxCluster : 1);
  const RowPlace<kGroup> at;
  const uint32_t blocks = kCluster ? cluster_size() : 1, rank = kCluster ? cluster_rank() : 0;
  const int64_t row_number = kCluster ? blockIdx.x / blocks : at.row;
  const bool written = row_number < p.n_rows, leads = written && at.thread == 0 && rank == 0;
  const int64_t y = written && p.labels != nullptr ? p.labels[row_number] : 0;
  const bool read = written && (p.labels == nullptr || y != p.ignore_index);
  float loss = 0.0f, lse = 0.0f, w_y = 0.0f;
  if (read) {  // the same for a whole group, and a whole cluster
    const T* x_row = static_cast<const T*>(p.logits) + row_number * p.stride_xm;
    const AlignedRow<T> row(x_row, p.n_cols);
    const Coefficients coefficients(p, row_number, row.shift);
    [[maybe_unused]] auto exchange = cluster_exchange<kCluster, 4>(of_blocks);
    const bool inside = y >= 0 && y < p.n_cols;
    float x_y = 0.0f;
    if (p.labels != nullptr && leads) {
      w_y = !inside ? NAN : p.weight.data != nullptr ? load_one(p.weight, y) : 1.0f;
      x_y = inside ? to_float(x_row[y]) : NAN;
    }

    OnlineSum sum;
    float s = 0.0f, c = 0.0f;
    const uint32_t step = blocks * kTile;
    each_tile_of<kTile, kWithSum>(rank * kTile, step, row.shift, row.end, true, [&](auto whole, uint32_t start) {
      float x[kLossItems], t[kLossItems];
      RowTile<T, kGroup, kLossItems> tile;
      tile.read(whole, at, row.origin, start, row.shift, row.end, true);
      tile.widen(x);
      fill_outside<kRun>(whole, at, start, row.shift, row.end, -INFINITY, x);
      if constexpr (kWithSum) {
#pragma unroll
        for (int item = 0; item < kLossItems; item += kRun) {
          const uint32_t position = at.template column<kRun>(start, item);
          coefficients.load<kRun>(position, row.low(position), row.high(position), t + item);
        }
      }
      const float before = finite_max(sum.m);
      sum.add<kLossItems>(x, [](float) {}, [](int, float) {});
      if constexpr (kWithSum) {
        const float after = finite_max(sum.m);
        s += (before - after) * c;
#pragma unroll
        for (int i = 0; i < kLossItems; i++) {
          const uint32_t position = at.template column<kRun>(start, i / kRun * kRun) + i % kRun;
          c += t[i];
          if (whole || (position >= row.shift && position < row.end)) s += t[i] * (x[i] - after);  // else 0 times -inf
        }
      }
    });

    const float own = finite_max(sum.m);
    sum.reduce_part<kGroup>(scratch);
    if constexpr (kWithSum) {
      s = group_reduce<Sum, kGroup>(s + (own - finite_max(sum.m)) * c, scratch + 2 * kMaxWarps);
      c = group_reduce<Sum, kGroup>(c, scratch + 3 * kMaxWarps);
    }
    if constexpr (kCluster) {
      exchange.own[2] = s;
      exchange.own[3] = c;
      s = c = 0.0f;
      reduce_over_cluster(exchange, sum, [&](uint32_t rank, float m, float) {
        s += exchange.of(rank, 2) + (finite_max(m) - sum.m) * exchange.of(rank, 3);
        c += exchange.of(rank, 3);
      });
    } else {
      sum.m = finite_max(sum.m);
    }
    const float log_l = logf(sum.l);
    lse = sum.m + log_l;
    if constexpr (kWithSum) {
      loss = log_l * c - s;
      if (p.labels != nullptr) loss *= coefficients.per_class;
    }
    if (p.labels != nullptr) loss += coefficients.keep * w_y * (log_l - (x_y - sum.m));
  }

  if (leads) p.lse[row_number] = lse;
  if (p.partials == nullptr) {
    if (leads) p.loss[row_number] = loss;
    if (leads && row_number == 0) *p.total_weight = 1.0f;
    return;
  }
  loss = leads ? loss : 0.0f;
  if constexpr (at.kRowsPerBlock > 1) {  // else the block's first thread has them, and scratch is in use
    loss = group_reduce<Sum, at.kBlock>(loss, scratch);
    w_y = group_reduce<Sum, at.kBlock>(w_y, scratch + kMaxWarps);
  }
  if (threadIdx.x == 0 && rank == 0) {
    p.partials[blockIdx.x / blocks] = loss;
    p.partials[(gridDim.x + blockIdx.x) / blocks] = w_y;
  }
}

template <class T, int kGroup, bool kProbabilities>
__global__ void __launch_bounds__(block_threads(kGroup), loss_blocks(kGroup))
    cross_entropy_bwd_kernel(CrossEntropyBwdParams p) {
  constexpr int kRun = kVectorWidth<T>;
  constexpr uint32_t kTile = kGroup * kLossItems;
  FTX_SHARED(float, scratch, kMaxWarps);
  const RowPlace<kGroup> at;
  if (at.row >= p.n_rows) return;  // a whole group, and where groups share a block there is no barrier
  const AlignedRow<T> row(static_cast<const T*>(p.logits) + at.row * p.stride_xm, p.n_cols);
  const Coefficients coefficients(p, at.row, row.shift);
  T* dx = static_cast<T*>(p.dlogits) + at.row * p.stride_dxm - row.shift;
  const bool dx_aligned = is_vector_aligned(dx);
  const uint32_t first = blockIdx.y * kTile, step = gridDim.y * kTile;

  float a = 0.0f, at_label = 0.0f;
  uint32_t label = UINT32_MAX;  // its position
  bool ignored = false;
  if constexpr (kProbabilities) {
    for (uint32_t start = 0; start < row.end; start += kTile) {
#pragma unroll
      for (int item = 0; item < kLossItems; item += kRun) {
        const uint32_t position = at.template column<kRun>(start, item);
        float t[kRun];
        coefficients.load<kRun>(position, row.low(position), row.high(position), t);
#pragma unroll
        for (int i = 0; i < kRun; i++) a += t[i];
      }
    }
    a = group_reduce<Sum, kGroup>(a, scratch);
  } else {
    const int64_t y = p.labels[at.row];
    ignored = y == p.ignore_index;
    at_label = NAN;
    if (y >= 0 && y < p.n_cols) {
      label = row.shift + static_cast<uint32_t>(y);
      at_label = coefficients.keep * (p.weight.data != nullptr ? load_one(p.weight, y) : 1.0f);
    }
    a = at_label;
    if (p.smoothing > 0.0f) a += p.weight.data != nullptr ? coefficients.per_class * *p.weight_sum : p.smoothing;
  }
  const float scale = ignored ? 0.0f : p.dloss[at.row * p.stride_dloss] / *p.total_weight;
  const float lse = ignored ? 0.0f : p.lse[at.row];

  const uint32_t read_end = ignored ? 0 : row.end;  // of an ignored row nothing is read
  each_tile_of<kTile>(first, step, row.shift, row.end, !ignored && dx_aligned, [&](auto whole, uint32_t start) {
    float d[kLossItems];
    RowTile<T, kGroup, kLossItems> tile;
    tile.read(whole, at, row.origin, start, row.shift, read_end, true);
    tile.widen(d);
#pragma unroll
    for (int item = 0; item < kLossItems; item += kRun) {
      const uint32_t position = at.template column<kRun>(start, item);
      const uint32_t low = whole ? 0 : row.low(position), high = whole ? kRun : row.high(position);
#pragma unroll
      for (int i = item; i < item + kRun; i++) d[i] = a * exp_ftz(d[i] - lse);
      if (kProbabilities || p.smoothing > 0.0f) {
        float t[kRun];
        coefficients.load<kRun>(position, low, high, t);
#pragma unroll
        for (int i = 0; i < kRun; i++) d[item + i] -= kProbabilities ? t[i] : coefficients.per_class * t[i];
      }
#pragma unroll
      for (int i = 0; i < kRun; i++) {
        const float own = d[item + i] - (position + i == label ? at_label : 0.0f);
        d[item + i] = !whole && ignored ? 0.0f : own * scale;
      }
      store_part<kRun>(dx + position, low, high, whole || dx_aligned, d + item);
    }
  });
}

}  // namespace fasttx
