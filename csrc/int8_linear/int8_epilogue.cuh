// From the sums of a tile to its outputs: through shared memory, so that a thread has eight columns side by side.
//
// In registers a thread has two columns here and two there (../arch/mma.cuh): stores of 4 bytes, and one copy of the
// code below for each. The sums go back to the memory of the ring instead, in `passes`, and the code is a loop: 16-byte
// chunks u of row r lie at u ^ ((u / 8 ^ r) % 2) ^ 2 (r % 4). Then the 8-byte stores of four rows and the 16-byte loads
// of eight neighbours meet each bank once.
//
//   registers                         shared memory                    threads
//   row g:      2 columns a lane      [warps_k][rows of a pass][n]     8 columns of a row: add the warps_k sums, scale,
//   row g + 8:  2 columns a lane  ->  int32, and the scales, bias  ->  bias, activation, residual; 16 bytes to memory
#pragma once
#include "../common/elements.cuh"
#include "../common/gelu.cuh"
#include "int8_linear.h"
#include "int8_product_sm80.cuh"

namespace fasttx {

template <class Shape>
struct Int8Staging {
  static constexpr int kFragments = Shape::kFragmentsM / Shape::kOf.passes;  // rows of them in a pass, a warp
  static constexpr int kRows = Shape::kOf.warps_m * kFragments * 16, kRuns = Shape::kBlockN / kRowRun;
  static constexpr int kPlaneBytes = kRows * Shape::kBlockN * 4, kSumBytes = Shape::kOf.warps_k * kPlaneBytes;
  static_assert(Shape::kFragmentsM % Shape::kOf.passes == 0 && kInt8Threads % kRuns == 0);
  static_assert(kSumBytes + (Shape::kBlockM + 2 * Shape::kBlockN) * 4 <= Shape::kRingBytes);

  static FTX_DEVICE int chunk_at(int row, int chunk) {  // 16 bytes each
    return row * (Shape::kBlockN / 4) + (chunk ^ ((chunk / 8 ^ row) & 1) ^ (row & 3) << 1);
  }

  // The row of the tile that row `row` of pass `pass` is.
  static FTX_DEVICE int row_of(int pass, int row) {
    const int warp = row / (16 * kFragments), within = row % (16 * kFragments);
    return warp * Shape::kWarpM + pass * 16 * kFragments + within;
  }
};

// A thread's row and column of scales and bias, asked for before the products: they arrive meanwhile.
template <class Shape>
struct Int8Scales {
  float x_scale = 0.0f, w_scale = 0.0f, bias = -0.0f;  // -0: a sum that changes nothing

  FTX_DEVICE Int8Scales(const Int8LinearParams& p, int64_t row0, int64_t col0) {
    const int i = threadIdx.x;
    if (i < Shape::kBlockM && row0 + i < p.n_rows) x_scale = p.x_scale[row0 + i];
    if (i < Shape::kBlockN && col0 + i < p.n_out) {
      w_scale = p.w_scale[col0 + i];
      if (p.bias.data != nullptr) bias = load_one(p.bias, col0 + i);
    }
  }

  FTX_DEVICE void store(float* to) const {
    const int i = threadIdx.x;
    if (i < Shape::kBlockM) to[i] = x_scale;
    if (i < Shape::kBlockN) {
      to[Shape::kBlockM + i] = w_scale;
      to[Shape::kBlockM + Shape::kBlockN + i] = bias;
    }
  }
};

// Eight columns of the residual as they lie in memory: asked for one row ahead of their use.
struct ResidualRun {
  uint4 words[2];
  bool whole;

  FTX_DEVICE ResidualRun(const Int8LinearParams& p, int64_t row, int64_t col) : words{}, whole(false) {
    if (p.residual.data == nullptr || row >= p.n_rows || col + kRowRun > p.n_out) return;
    const int size = p.residual.dtype == DType::kFloat32 ? 4 : 2;
    const auto* at = static_cast<const unsigned char*>(p.residual.data) + (row * p.stride_rm + col) * size;
    whole = is_vector_aligned(at);
    if (whole) words[0] = aligned_at<uint4>(at);
    if (whole && size == 4) words[1] = aligned_at<uint4>(at + 16);
  }

  // y += residual
  FTX_DEVICE void add(const Int8LinearParams& p, int64_t row, int64_t col, float (&y)[kRowRun]) const {
    if (p.residual.data == nullptr) return;
    with_element<Any>(p.residual.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      float values[kRowRun];
      if (whole) {
        Vector<T> vectors[kRowRun / kVectorWidth<T>];
        memcpy(vectors, words, sizeof vectors);
#pragma unroll
        for (int i = 0; i < kRowRun; i++)
          values[i] = to_float(vectors[i / kVectorWidth<T>].values[i % kVectorWidth<T>]);
      } else {
        const T* at = static_cast<const T*>(p.residual.data) + row * p.stride_rm + col;
        load_run<kRowRun>(at, left_of(p.n_out, col), false, values);
      }
#pragma unroll
      for (int i = 0; i < kRowRun; i++) y[i] += values[i];
    });
  }
};

// out of a tile, from the sums that int8_product left.
template <class Shape>
FTX_DEVICE void int8_epilogue(const Int8LinearParams& p, unsigned char* memory, int64_t row0, int64_t col0,
                              const Int8Scales<Shape>& scales,
                              const int (&sums)[Shape::kFragmentsM][Shape::kFragmentsN][4]) {
  using Staging = Int8Staging<Shape>;
  constexpr int kAtOnce = kInt8Threads / Staging::kRuns;  // rows
  const Int8Warp<Shape> at;
  const int g = at.lane / 4, t = at.lane % 4, run = threadIdx.x % Staging::kRuns, first = threadIdx.x / Staging::kRuns;
  const int64_t col = col0 + run * kRowRun;
  float* const held = &aligned_at<float>(memory + Staging::kSumBytes);
  scales.store(held);
  // Of the lane's sums in the first fragment. 16 rows further lies a constant on, and a fragment of columns further is
  // an exclusive or.
  const int row_of_warp = at.m / Shape::kWarpM * Staging::kFragments * 16 + g;
  unsigned char* const plane = memory + at.k * Staging::kPlaneBytes;
  const int place = Staging::chunk_at(row_of_warp, at.n / 4 + t / 2) * 16 + t % 2 * 8;
#pragma unroll 1
  for (int pass = 0; pass < Shape::kOf.passes; pass++) {
    ResidualRun ahead(p, row0 + Staging::row_of(pass, first), col);
#pragma unroll
    for (int i = 0; i < Shape::kFragmentsM; i++) {
      if (i / Staging::kFragments != pass) continue;
#pragma unroll
      for (int j = 0; j < Shape::kFragmentsN; j++) {
        unsigned char* const to = plane + (place ^ Staging::chunk_at(0, 2 * j) * 16);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int rows_on = i % Staging::kFragments * 16 + 8 * half;
          aligned_at<int2>(to + rows_on * Shape::kBlockN * 4) =
              make_int2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
        }
      }
    }
    __syncthreads();  // sums, scales and bias: written by all, read by all
    float w_scale[kRowRun], bias[kRowRun];
    load_run<kRowRun>(held + Shape::kBlockM + run * kRowRun, kRowRun, true, w_scale);
    load_run<kRowRun>(held + Shape::kBlockM + Shape::kBlockN + run * kRowRun, kRowRun, true, bias);
#pragma unroll 1
    for (int row = first; row < Staging::kRows; row += kAtOnce) {
      const int in_tile = Staging::row_of(pass, row);
      const ResidualRun residual = ahead;
      if (row + kAtOnce < Staging::kRows) ahead = {p, row0 + Staging::row_of(pass, row + kAtOnce), col};
      int total[kRowRun] = {};
#pragma unroll
      for (int k = 0; k < Shape::kOf.warps_k; k++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int chunk = Staging::chunk_at(row, 2 * run + half);
          const int4 part = aligned_at<int4>(memory + k * Staging::kPlaneBytes + chunk * 16);
          total[4 * half] += part.x, total[4 * half + 1] += part.y;
          total[4 * half + 2] += part.z, total[4 * half + 3] += part.w;
        }
      }
      float y[kRowRun];
#pragma unroll
      for (int i = 0; i < kRowRun; i++) {
        y[i] = static_cast<float>(total[i]) * held[in_tile] * w_scale[i] + bias[i];
      }
      if (p.activation != static_cast<int>(Activation::kNone))
        gelu(p.activation == static_cast<int>(Activation::kGeluTanh), y);
      if (row0 + in_tile < p.n_rows && col < p.n_out) {
        residual.add(p, row0 + in_tile, col, y);
        store_run_of<Any, kRowRun>(p.out, (row0 + in_tile) * p.n_out + col, left_of(p.n_out, col), y);
      }
    }
    if (pass + 1 < Shape::kOf.passes) __syncthreads();  // the sums of this pass: read by all, overwritten by the next
  }
}

}  // namespace fasttx
