// GELU of x + bias, then dropout, tile by tile: forward and backward.
//
// Mathematics
//   z = x + bias,  out = keep gelu(z) / (1 - p_hat)
//   erf:  gelu(z) = z (1 + erf(z / sqrt 2)) / 2,  gelu'(z) = (1 + erf(z / sqrt 2)) / 2 + z exp(-z^2 / 2) / sqrt(2 pi)
//   tanh: with u = sqrt(2 / pi) (z + 0.044715 z^3) and s = sigmoid(2 u) = (1 + tanh u) / 2:
//         gelu(z) = z s,  gelu'(z) = s + 2 z s (1 - s) u',  u' = sqrt(2 / pi) (1 + 3 * 0.044715 z^2)
//   With e = exp(-|2 u|), s is 1 / (1 + e) or e / (1 + e), and s (1 - s) = e / (1 + e)^2: no exponential overflows, and
//   no difference of nearly equal numbers is taken in either tail. erf is computed as its own tail.
//   backward: dx = gelu'(z) keep dout / (1 - p_hat),  dbias = sum over rows of dx
//
// Contract
//   A tile is of 8 columns for each of 1 to 32 threads side by side, and of rows for the rest of 128 threads, kRows
//   each; blocks count the tiles of a row first. With dbias a block keeps to its columns and takes tiles of rows in
//   turn, with a float32 sum of what it computed of dx before rounding; it writes one row of partial sums, and
//   column_sum adds these. No atomics: bitwise deterministic for a given number of blocks. 16-byte accesses in rows at
//   multiples of 16 bytes. z is never written. T is the element type of x, D that of dout, Any where it is another.
//
// Cost
//   Forward about 30 flop an element, backward 35 (../common/gelu.cuh); bytes: x and out, or dout, x and dx, once; the
//   partial sums 4 bytes a column and block of rows, twice. Two Philox calls for 16 elements. Shared memory: 4 KiB in
//   backward.
#pragma once
#include "../common/gelu.cuh"
#include "../common/row_parts.cuh"
#include "bias_gelu.h"

namespace fasttx {

constexpr int kGeluThreads = 128;
constexpr int kGeluFwdRows = 2, kGeluBwdRows = 1;  // of a thread in a tile: as many accesses of 16 bytes in halves

// Which columns are this thread's, and which rows of a tile.
template <int kRows>
struct GeluPlace {
  uint32_t lane, group, groups, col, valid;
  int64_t row_tile;

  template <class Params>
  FTX_DEVICE explicit GeluPlace(const Params& p)
      : lane(threadIdx.x & ((1u << p.tiles.lanes_log2) - 1)),
        group(threadIdx.x >> p.tiles.lanes_log2),
        groups(kGeluThreads >> p.tiles.lanes_log2),
        col((blockIdx.x % static_cast<uint32_t>(p.tiles.col_tiles) << p.tiles.lanes_log2 | lane) * kRowRun),
        valid(left_of(static_cast<uint32_t>(p.n_cols), col)),
        row_tile(blockIdx.x / static_cast<uint32_t>(p.tiles.col_tiles)) {}

  FTX_DEVICE int64_t row(int64_t tile, int r) const { return (tile * kRows + r) * groups + group; }

  // out = this thread's columns of kRows rows, 0 beyond the tensor; all loads are on their way before the first is
  // waited for where they are of 16 bytes.
  template <class T>
  FTX_DEVICE void load(const In& in, int64_t stride, int64_t n_rows, int64_t tile, float (&out)[kRows][kRowRun]) const {
    with_element<T>(in.dtype, [&](auto type) {
      using E = typename decltype(type)::type;
      constexpr int kWidth = kVectorWidth<E>;
      const E* base = static_cast<const E*>(in.data) + col;
      if (is_vector_aligned(base) && stride % kWidth == 0 && valid >= kRowRun) {
        Vector<E> vectors[kRows][kRowRun / kWidth];
#pragma unroll
        for (int r = 0; r < kRows; r++) {
#pragma unroll
          for (int v = 0; v < kRowRun / kWidth; v++) {
            vectors[r][v] = {};
            if (row(tile, r) < n_rows) {
              vectors[r][v] = aligned_at<Vector<E>>(base + row(tile, r) * stride + v * kWidth);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kRows * kRowRun; i++) {
          out[i / kRowRun][i % kRowRun] = to_float(vectors[i / kRowRun][i % kRowRun / kWidth].values[i % kWidth]);
        }
      } else {
#pragma unroll
        for (int r = 0; r < kRows; r++) {
          const bool inside = row(tile, r) < n_rows;
          load_run<kRowRun>(base + (inside ? row(tile, r) * stride : 0), inside ? valid : 0, false, out[r]);
        }
      }
    });
  }
};

FTX_DEVICE void drop(const Dropout& dropout, int64_t row, uint32_t col, float (&values)[kRowRun]) {
  if (dropout.rng_state == nullptr) return;
  const RowDropout mask(dropout.rng_state, kGeluTag, dropout.threshold, dropout.keep_scale);
  apply_kept(mask.keep<kRowRun>(mask_number(dropout, row), col), dropout, values);
}

template <class T>
__global__ void __launch_bounds__(kGeluThreads, 8) bias_gelu_fwd_kernel(BiasGeluFwdParams p) {
  constexpr int kRows = kGeluFwdRows;
  const GeluPlace<kRows> at(p);
  if (at.valid == 0) return;
  float z[kRows][kRowRun], bias[kRowRun];
#pragma unroll
  for (int i = 0; i < kRowRun; i++) bias[i] = -0.0f;  // added to -0.0 it leaves -0.0
  at.template load<T>({p.x, p.dtype}, p.stride_xm, p.n_rows, at.row_tile, z);
  if (p.bias.data != nullptr) load_run_of<Any, kRowRun>(p.bias, at.col, at.valid, bias);
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    const int64_t row = at.row(at.row_tile, r);
    if (row >= p.n_rows) return;
#pragma unroll
    for (int i = 0; i < kRowRun; i++) z[r][i] += bias[i];
    gelu(p.tanh, z[r]);
    drop(p.dropout, row, at.col, z[r]);
    store_run_of<T, kRowRun>({p.out, p.dtype}, row * p.n_cols + at.col, at.valid, z[r]);
  }
}

template <class T, class D>
__global__ void __launch_bounds__(kGeluThreads, 8) bias_gelu_bwd_kernel(BiasGeluBwdParams p) {
  constexpr int kRows = kGeluBwdRows;
  FTX_SHARED(float, sums, kRowRun* kGeluThreads);
  const GeluPlace<kRows> at(p);
  float bias[kRowRun] = {}, dbias[kRowRun] = {};
  if (p.bias.data != nullptr) load_run_of<Any, kRowRun>(p.bias, at.col, at.valid, bias);
  for (int64_t tile = at.row_tile; tile < p.tiles.row_tiles; tile += p.row_programs) {
    float dx[kRows][kRowRun], z[kRows][kRowRun];
    at.template load<D>(p.dout, p.stride_dm, p.n_rows, tile, dx);
    at.template load<T>({p.x, p.dtype}, p.stride_xm, p.n_rows, tile, z);
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const int64_t row = at.row(tile, r);
      if (row >= p.n_rows) break;
#pragma unroll
      for (int i = 0; i < kRowRun; i++) z[r][i] += bias[i];
      drop(p.dropout, row, at.col, dx[r]);
      gelu_derivative(p.tanh, z[r]);
#pragma unroll
      for (int i = 0; i < kRowRun; i++) {
        dx[r][i] *= z[r][i];
        dbias[i] += dx[r][i];  // beyond the row nobody reads it
      }
      if (p.dx != nullptr) store_run_of<T, kRowRun>({p.dx, p.dtype}, row * p.n_cols + at.col, at.valid, dx[r]);
    }
  }
  if (p.dbias.data == nullptr) return;
#pragma unroll
  for (int i = 0; i < kRowRun; i++) sums[i * kGeluThreads + threadIdx.x] = dbias[i];
  __syncthreads();  // sums: written by every thread, read by the first group
  if (at.group > 0) return;
  for (uint32_t other = 1; other < at.groups; other++) {
#pragma unroll
    for (int i = 0; i < kRowRun; i++) {
      dbias[i] += sums[i * kGeluThreads + (other << p.tiles.lanes_log2 | at.lane)];
    }
  }
  const int64_t first = at.row_tile * p.n_cols + at.col;
  store_run_of<float, kRowRun>({p.partial, DType::kFloat32}, first, at.valid, dbias);
}

}  // namespace fasttx
