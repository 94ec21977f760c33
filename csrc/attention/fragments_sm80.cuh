// Tiles of 16-bit elements in shared memory, and the operands of mma.sync that are read from them.
//
// A tile's row is kColumns / 8 chunks of 16 bytes. ldmatrix reads the same chunk of eight rows at once, and these have
// to lie in different banks: chunk c of row r is stored as chunk c ^ (r % 8) where rows are multiples of 128 bytes, as
// chunk c ^ (r / 2 % 4) where they are odd multiples of 64, of which every other one begins half a line later.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../arch/cp_async.cuh"
#include "../arch/launch.cuh"
#include "../arch/ldmatrix.cuh"
#include "../arch/mma.cuh"
#include "../common/vectors.cuh"

namespace fasttx {

// kRows x kColumns elements of shared memory, from a multiple of 128 bytes on.
template <int kRows, int kColumns>
struct Tile {
  static_assert(kColumns % 32 == 0 && kRows % 16 == 0);
  static constexpr int kChunks = kColumns / 8, kBytes = kRows * kColumns * 2;
  unsigned char* data;
  uint32_t base;  // where that is, as instructions take it

  FTX_DEVICE explicit Tile(unsigned char* data) : data(data), base(shared_address(data)) {}

  FTX_DEVICE static int offset(int row, int chunk) {
    const int swizzled = kChunks % 8 == 0 ? chunk ^ row % 8 : chunk ^ row / 2 % 4;
    return (row * kChunks + swizzled) * 16;
  }
  FTX_DEVICE uint32_t at(int row, int chunk) const { return base + offset(row, chunk); }

  // A chunk, and two elements from an even column on, by plain accesses.
  FTX_DEVICE uint4& chunk(int row, int chunk) const { return aligned_at<uint4>(data + offset(row, chunk)); }
  FTX_DEVICE uint32_t& pair(int row, int column) const {
    return aligned_at<uint32_t>(data + offset(row, column / 8) + column % 8 * 2);
  }

  // Operands of 16 x 16 elements. Rows are multiples of 8 and columns of 16: then every place of an operand is one and
  // the same address of the lane, with constants added and a constant XORed.
  FTX_DEVICE static uint32_t moved(uint32_t address, int rows, int columns) {
    constexpr int kLine = kChunks % 8 == 0 ? 128 : 64;  // within it chunks change places
    return (address ^ 2 * columns % kLine) + rows * kChunks * 16 + 2 * columns / kLine * kLine;
  }

  // A from row `row` and column `column` on.
  FTX_DEVICE void load_a(uint32_t (&a)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    ldmatrix(a, moved(at(lane % 16, lane / 16), row, column));
  }
  // A whose rows are the tile's columns, from tile row `k` and tile column `row` on.
  FTX_DEVICE void load_a_transposed(uint32_t (&a)[4], int k, int row) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_transposed(a, moved(at(lane % 8 + lane / 16 * 8, lane / 8 % 2), k, row));
  }
  // B whose columns are the tile's rows, from tile row `n` and tile column `k` on: b[0], b[1] are the operand of the
  // first eight columns, b[2], b[3] that of the others.
  FTX_DEVICE void load_b(uint32_t (&b)[4], int n, int k) const {
    const int lane = threadIdx.x % 32;
    ldmatrix(b, moved(at(lane % 8 + lane / 16 * 8, lane / 8 % 2), n, k));
  }
  // B as it lies, from tile row `k` and tile column `n` on; likewise.
  FTX_DEVICE void load_b_transposed(uint32_t (&b)[4], int k, int n) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_transposed(b, moved(at(lane % 16, lane / 16), k, n));
  }
};

// Rows of a matrix in global memory, of which `rows` and `columns` exist; the others are zeros in a tile.
template <class T>
struct Matrix {
  static_assert(sizeof(T) == 2);
  const T* data;
  int64_t stride;
  int rows, columns;
  bool aligned;  // each row begins at a multiple of 16 bytes

  FTX_DEVICE Matrix(const T* data, int64_t stride, int rows, int columns)
      : data(data),
        stride(stride),
        rows(rows),
        columns(columns),
        aligned(is_vector_aligned(data) && stride % kVectorWidth<T> == 0) {}

  // Copies the rows from `row` on into a tile that nobody reads or writes any more. All kThreads threads call it. The
  // tile is theirs after cp_async_commit, a wait for that group and a barrier: rows that are not aligned are stored
  // at once, by plain loads, and the same barrier is for them.
  template <int kThreads, int kRows, int kColumns>
  FTX_DEVICE void load(const Tile<kRows, kColumns>& tile, int row) const {
    constexpr int kChunks = kColumns / 8, kGroup = kChunks % 16 == 0 ? 16 : kChunks % 8 == 0 ? 8 : 4;
    constexpr int kAtOnce = kThreads / kGroup;  // rows; each is copied by kGroup threads
    static_assert(kAtOnce % 8 == 0 && kRows % kAtOnce == 0);
    const int tile_row = threadIdx.x / kGroup, chunk = threadIdx.x % kGroup;
    const uint32_t to = tile.at(tile_row, chunk);
    const T* from = data + (row + tile_row) * stride + 8 * chunk;
    auto valid = [&](int r, int c) {  // elements of a chunk that exist
      const int left = columns - 8 * (chunk + c);
      return row + tile_row + r < rows && left > 0 ? (left < 8 ? left : 8) : 0;
    };
    if (aligned) {
#pragma unroll
      for (int r = 0; r < kRows; r += kAtOnce) {
#pragma unroll
        for (int c = 0; c < kChunks; c += kGroup) {
          const int n = valid(r, c);
          cp_async(tile.moved(to, r, 8 * c), n > 0 ? from + 8 * c : data, 2 * n);
        }
        from += kAtOnce * stride;
      }
    } else {
#pragma unroll 1  // the elements of few chunks in registers at a time
      for (int r = 0; r < kRows; r += kAtOnce) {
#pragma unroll 1
        for (int c = 0; c < kChunks; c += kGroup) {
          tile.chunk(tile_row + r, chunk + c) = copied(from + 8 * c, valid(r, c));
        }
        from += kAtOnce * stride;
      }
    }
  }

 private:
  // The first elements of a chunk, one by one, and zeros.
  FTX_DEVICE static uint4 copied(const T* from, int valid) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t low = 2 * i < valid ? bits_of(from[2 * i]) : 0u;
      const uint32_t high = 2 * i + 1 < valid ? bits_of(from[2 * i + 1]) : 0u;
      words[i] = high << 16 | low;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
  FTX_DEVICE static uint32_t bits_of(T x) {
    uint16_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
  }
};

// Two floats as one register of a 16-bit operand, the first in the low bits.
template <class T>
FTX_DEVICE uint32_t pack(float first, float second) {
  uint32_t word;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  }
  return word;
}

// Two accumulators, side by side, as the A operand (16 x 16) of the next product: the layouts are the same.
template <class T>
FTX_DEVICE void as_a_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack<T>(left[0], left[1]);
  a[1] = pack<T>(left[2], left[3]);
  a[2] = pack<T>(right[0], right[1]);
  a[3] = pack<T>(right[2], right[3]);
}

}  // namespace fasttx
