// What the kernels of the attention backward share: what they are started with, and products of a warp.
#pragma once
#include "bwd_config.h"
#include "fragments_sm80.cuh"
#include "online_softmax.cuh"
#include "work.cuh"

namespace fasttx {

struct BwdLaunch {
  AttentionBwdParams p;
  float *lse, *delta;   // the halves of the workspace; bwd_delta.cuh says what they hold
  int64_t head_blocks;  // of kStatRows rows there: of a head, or of a head and sequence where nothing is packed
  int blocks;           // of rows, or of keys, that the longest sequence has
  bool computes_dq;     // one block walks over all keys of a head and writes dq, too
  float keep_scale;     // 1 / (1 - p_hat)
};

constexpr int kStatRows = 64;

// Where the workspace has the first query of a head: each sequence begins at a multiple of kStatRows rows.
FTX_DEVICE int64_t stat_row(const BwdLaunch& a, const HeadWork& work) {
  const int64_t block = a.p.shape.cu_seqlens_q == nullptr ? work.head * a.head_blocks
                                                          : work.h * a.head_blocks + work.q.first / kStatRows + work.b;
  return block * kStatRows;
}

// x. What follows from it is computed where it is needed: the compiler does not keep it in registers through a loop.
FTX_DEVICE int computed_here(int x) {
#ifndef FASTTX_EMULATE
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// d += A B^T of a warp. A: 16 rows, of which a_of(column, registers) gives 16 columns; B: the first rows of a tile.
template <class T, int kRows, int kColumns, int kBlocks, class A>
FTX_DEVICE void add_product_transposed(float (&d)[kBlocks][4], A&& a_of, const Tile<kRows, kColumns>& b) {
#pragma unroll
  for (int k = 0; k < kColumns; k += 16) {
    uint32_t fa[4];
    a_of(k, fa);
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t fb[4];
      b.load_b(fb, 8 * j, k);
      mma<T>(d[j], fa, fb[0], fb[1]);
      mma<T>(d[j + 1], fa, fb[2], fb[3]);
    }
  }
}

// d += A B of a warp: B is the columns of a tile from `column` on.
template <class T, int kRows, int kColumns, int kBlocks, class A>
FTX_DEVICE void add_product(float (&d)[kBlocks][4], A&& a_of, const Tile<kRows, kColumns>& b, int column) {
#pragma unroll
  for (int k = 0; k < kRows; k += 16) {
    uint32_t fa[4];
    a_of(k, fa);
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t fb[4];
      b.load_b_transposed(fb, k, column + 8 * j);
      mma<T>(d[j], fa, fb[0], fb[1]);
      mma<T>(d[j + 1], fa, fb[2], fb[3]);
    }
  }
}

// Scores as a mask and `probability` want them: raw or scaled.
template <int kN8>
FTX_DEVICE void units_of_scores(float (&s)[1][kN8][4], const ScoreUnits& units) {
  if (units.folds) return;
#pragma unroll
  for (int x = 0; x < 4 * kN8; x++) s[0][x / 4][x % 4] *= units.scale;
}

// P / (1 - p_hat); lse is what the workspace has of the row.
FTX_DEVICE float probability(float score, float lse, const ScoreUnits& units) {
  return exp2_ftz(units.folds ? score * units.to_log2 - lse : (score - lse) * units.to_log2);
}

// A for the two above: 16 rows of a tile. kHeld: from registers, which hold() has filled once.
template <int kColumns, bool kHeld>
struct LeftOperand {
  uint32_t held[kHeld ? kColumns / 16 : 1][4];

  template <int kRows>
  FTX_DEVICE void hold(const Tile<kRows, kColumns>& tile, int row) {
    if constexpr (kHeld) {
#pragma unroll
      for (int k = 0; k < kColumns / 16; k++) tile.load_a(held[k], row, 16 * k);
    }
  }

  template <int kRows>
  FTX_DEVICE auto of(const Tile<kRows, kColumns>& tile, int row) const {
    return [this, tile, row](int k, uint32_t (&a)[4]) {
      if constexpr (kHeld) {
#pragma unroll
        for (int e = 0; e < 4; e++) a[e] = held[k / 16][e];
      } else {
        tile.load_a(a, row, k);
      }
    };
  }
};

// A that accumulators became.
template <int kSteps>
FTX_DEVICE auto from_registers(const uint32_t (&operand)[kSteps][4]) {
  return [&operand](int k, uint32_t (&a)[4]) {
#pragma unroll
    for (int e = 0; e < 4; e++) a[e] = operand[k / 16][e];
  };
}

// Head h of a gradient of (tokens, heads, columns), contiguous.
template <class T>
struct GradientRows {
  T* data;
  int stride, columns;

  FTX_DEVICE GradientRows(void* data, int heads, int columns, int h)
      : data(static_cast<T*>(data) + h * columns), stride(heads * columns), columns(columns) {}

  // Writes accumulators of 16 rows, times `scale`, from `row` and `column` on. Row 0 is token `first`, and those from
  // `rows` on do not exist.
  template <int kBlocks>
  FTX_DEVICE void store(int first, int rows, int row, int column, const float (&d)[kBlocks][4], float scale) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int at_row = row + lane / 4 + 8 * r;
      if (at_row >= rows) continue;
      T* to = data + static_cast<int64_t>(first + at_row) * stride;
#pragma unroll
      for (int j = 0; j < kBlocks; j++) {
        const int at = column + 8 * j + lane % 4 * 2;
        const float x = d[j][2 * r] * scale, y = d[j][2 * r + 1] * scale;
        if (columns % 2 == 0) {  // then pairs begin at multiples of 4 bytes
          if (at < columns) aligned_at<uint32_t>(to + at) = pack<T>(x, y);
        } else {
          if (at < columns) from_float(x, to + at);
          if (at + 1 < columns) from_float(y, to + at + 1);
        }
      }
    }
  }

  // Packed: zeros for the tokens that no tile of sequence b covers.
  FTX_DEVICE void zero_uncovered(int b, int batch, const Tokens& tokens, int64_t total) const {
    fill_uncovered(data, stride, columns, b, batch, tokens, total, 0.0f, 0.0f, Team::of_block());
  }
};

}  // namespace fasttx
