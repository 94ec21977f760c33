// The sums of a tile, in registers: copies into a ring of stages in shared memory, and products of what has arrived.
//
// A stage holds block_m rows of x_q and then block_n rows of w_q, block_k bytes of k each. 16-byte chunk c of row r
// lies at chunk c ^ swizzle(r), so that eight rows of one chunk, which ldmatrix reads at once, lie in different banks:
//
//   block_k = 64   row 0: 0 1 2 3   row 2: 1 0 3 2   row 4: 2 3 0 1   row 6: 3 2 1 0     two rows share 128 bytes
//                  row 1: 0 1 2 3   row 3: 1 0 3 2   row 5: 2 3 0 1   row 7: 3 2 1 0
//   block_k = 128  row r: 0^r 1^r ... 7^r, and 256 twice that
//
// One step of k, kStages - 1 of which are under way:
//
//   wait       this thread's copies of the step have landed
//   barrier    so have all others', and all warps are done with the stage of the step before
//   copy       step + kStages - 1 into that stage
//   products   of the step
#pragma once
#include "../arch/aligned.cuh"
#include "../arch/cp_async.cuh"
#include "../arch/ldmatrix.cuh"
#include "../arch/mma.cuh"
#include "int8_linear_config.h"

namespace fasttx {

template <int kTile>
struct Int8Shape {
  static constexpr Int8Tile kOf = kInt8Tiles[kTile];
  static constexpr int kBlockM = kOf.block_m, kBlockN = kOf.block_n, kBlockK = kOf.block_k, kStages = kOf.stages;
  static constexpr int kStageBytes = (kBlockM + kBlockN) * kBlockK, kRingBytes = kStages * kStageBytes;
  static constexpr int kWarpM = kBlockM / kOf.warps_m, kWarpN = kBlockN / kOf.warps_n, kWarpK = kBlockK / kOf.warps_k;
  static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
  static_assert(kOf.warps_m * kOf.warps_n * kOf.warps_k * 32 == kInt8Threads);
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0 && kWarpK % 32 == 0 && kRingBytes <= 48 << 10);
  static_assert(kBlockM <= kInt8Threads && kBlockN <= kInt8Threads, "a thread holds one scale of each");
};

// Where a warp's part of a tile lies.
template <class Shape>
struct Int8Warp {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int k = warp / (Shape::kOf.warps_m * Shape::kOf.warps_n);
  int m = warp / Shape::kOf.warps_n % Shape::kOf.warps_m * Shape::kWarpM;
  int n = warp % Shape::kOf.warps_n * Shape::kWarpN;
};

template <int kBlockK>
FTX_DEVICE uint32_t chunk_at(int row, int chunk) {
  constexpr int kRowsOfLine = kBlockK < 128 ? 128 / kBlockK : 1, kChunks = kBlockK < 128 ? kBlockK / 16 : 8;
  return row * kBlockK + (chunk ^ (row / kRowsOfLine % kChunks)) * 16;
}

// 16 bytes from p, of which the first `left` exist and the others are 0; words where they lie at multiples of 4.
FTX_DEVICE uint4 gather(const int8_t* p, int left) {
  uint32_t words[4] = {};
  const bool aligned = reinterpret_cast<uintptr_t>(p) % 4 == 0;
#pragma unroll
  for (int w = 0; w < 4; w++) {
    if (aligned && left >= 4 * w + 4) {
      words[w] = aligned_at<uint32_t>(p + 4 * w);
    } else {
#pragma unroll
      for (int b = 0; b < 4; b++) {
        if (4 * w + b < left) words[w] |= static_cast<uint32_t>(static_cast<uint8_t>(p[4 * w + b])) << (8 * b);
      }
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The rows of a matrix that a block multiplies, on their way to the ring: zeros beyond the matrix, where nothing is
// read.
template <int kRows, int kBlockK, bool kAligned>
class RowCopies {
 public:
  FTX_DEVICE RowCopies(const int8_t* matrix, int64_t stride, int64_t rows, int n_in, int64_t row0)
      : at_(matrix + (row0 + threadIdx.x / kChunks) * stride + kColumn * (threadIdx.x % kChunks)),
        next_(kRowsAtOnce * stride),
        rows_(static_cast<int>(rows - row0 < kRows ? rows - row0 : kRows) - static_cast<int>(threadIdx.x / kChunks)),
        left_(n_in - kColumn * static_cast<int>(threadIdx.x % kChunks)),
        to_(chunk_at<kBlockK>(threadIdx.x / kChunks, threadIdx.x % kChunks)) {}

  // The next kBlockK bytes of each row.
  FTX_DEVICE void copy(unsigned char* to) {
    const int rows = left_ > 0 ? rows_ : 0;
    const int8_t* from = at_;
#pragma unroll
    for (int i = 0; i < kRows / kRowsAtOnce; i++) {  // rows a multiple of 8 apart: one swizzle
      unsigned char* const here = to + to_ + i * kRowsAtOnce * kBlockK;
      if constexpr (kAligned) {
        cp_async(shared_address(here), from, i * kRowsAtOnce < rows ? kColumn : 0);  // n_in is a multiple of 16
      } else {
        aligned_at<uint4>(here) = gather(from, i * kRowsAtOnce < rows ? left_ : 0);
      }
      from += next_;
    }
    at_ += kBlockK;
    left_ -= kBlockK;
  }

 private:
  static constexpr int kColumn = 16, kChunks = kBlockK / kColumn, kRowsAtOnce = kInt8Threads / kChunks;
  static_assert(kRows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);
  const int8_t* at_;  // of this thread's first row
  const int64_t next_;
  const int rows_;  // from that one on
  int left_;        // bytes of k
  const uint32_t to_;
};

// sums = x_q w_q^T of this warp's part of a tile whose first row and column are row0 and col0; of its share of k where
// several warps have that part. All of the ring is free again at the end.
template <class Shape, bool kAligned, class Params>
FTX_DEVICE void int8_product(const Params& p, unsigned char* ring, int64_t row0, int64_t col0,
                             int (&sums)[Shape::kFragmentsM][Shape::kFragmentsN][4]) {
  constexpr int kBlockM = Shape::kBlockM, kBlockN = Shape::kBlockN, kBlockK = Shape::kBlockK, kStages = Shape::kStages;
  constexpr int kSlices = Shape::kWarpK / 32, kGroupsN = Shape::kFragmentsN / 2;
  const Int8Warp<Shape> at;
  const int n_in = static_cast<int>(p.n_in), steps = (n_in + kBlockK - 1) / kBlockK;
  RowCopies<kBlockM, kBlockK, kAligned> x(p.x_q, p.stride_xm, p.n_rows, n_in, row0);
  RowCopies<kBlockN, kBlockK, kAligned> w(p.w_q, p.stride_wn, p.n_out, n_in, col0);
  int filled = 0, read = 0;  // where the next stages of both kinds begin
  const auto next_stage = [](int& stage) {
    stage = stage + Shape::kStageBytes < Shape::kRingBytes ? stage + Shape::kStageBytes : 0;
  };
  const auto copy = [&](int step) {
    if (step < steps) {
      x.copy(ring + filled);
      w.copy(ring + filled + kBlockM * kBlockK);
    }
    next_stage(filled);
    cp_async_commit();  // also where there is nothing: a wait counts groups
  };
  // Of the lane's row in the first fragments. 16 rows further lies 16 kBlockK on, and 32 bytes of k further is an
  // exclusive or: no bit of a chunk's number is carried.
  const int first_chunk = at.k * (Shape::kWarpK / 16);
  const uint32_t a0 = chunk_at<kBlockK>(at.m + at.lane % 16, first_chunk + at.lane / 16);
  const uint32_t b0 = chunk_at<kBlockK>(kBlockM + at.n + at.lane % 8 + at.lane / 16 * 8, first_chunk + at.lane / 8 % 2);

#pragma unroll
  for (int step = 0; step < kStages - 1; step++) copy(step);
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this stage: copied by all, read by all; the one before it: read by all, overwritten next
    copy(step + kStages - 1);
    const uint32_t stage = shared_address(ring) + read;
    next_stage(read);
#pragma unroll
    for (int slice = 0; slice < kSlices; slice++) {
      uint32_t a[Shape::kFragmentsM][4], b[kGroupsN][4];
#pragma unroll
      for (int i = 0; i < Shape::kFragmentsM; i++) ldmatrix(a[i], stage + (a0 ^ 32 * slice) + i * 16 * kBlockK);
#pragma unroll
      for (int j = 0; j < kGroupsN; j++) ldmatrix(b[j], stage + (b0 ^ 32 * slice) + j * 16 * kBlockK);
#pragma unroll
      for (int i = 0; i < Shape::kFragmentsM; i++) {
#pragma unroll
        for (int j = 0; j < Shape::kFragmentsN; j++) {
          mma<int8_t>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();  // the ring: read by all, given to the epilogue
}

}  // namespace fasttx
