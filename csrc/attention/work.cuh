// Which sequence and head a block works on, where their tokens begin, how many there are, and the tokens of none.
//
// Padded: sequence b has max_seqlen tokens, of keys at most seqused_k[b].  Packed: token cu_seqlens[b] to
// cu_seqlens[b + 1].  Bounds that are wrong never lead out of the tensors: a sequence is cut off at max_seqlen.
#pragma once
#include <cstdint>

#include "../arch/launch.cuh"
#include "../common/vectors.cuh"
#include "attention.h"

namespace fasttx {

// The tokens first .. first + length - 1 are those of a sequence; end: where it ends if max_seqlen does not cut it off.
struct Tokens {
  int first, length, end;

  // A bound within the tensor: differences of two cannot wrap.
  FTX_DEVICE static int within(int bound, int total) { return bound < 0 ? 0 : bound < total ? bound : total; }

  FTX_DEVICE Tokens(int b, int max_seqlen, const int* cu_seqlens, int total) {
    if (cu_seqlens == nullptr) {
      first = 0;
      length = end = max_seqlen;
      return;
    }
    first = within(cu_seqlens[b], total);
    end = within(cu_seqlens[b + 1], total);
    length = end - first < max_seqlen ? end - first : max_seqlen;  // 0 or less: none
  }
};

struct HeadWork {
  int b, h, h_k;
  int head;  // b * num_heads + h
  Tokens q, k;
  int n_q, n_k;
  int shift;  // the key that stands opposite of query 0

  FTX_DEVICE HeadWork(const AttentionShape& shape, int head)
      : b(head / shape.num_heads),
        h(head % shape.num_heads),
        h_k(h / (shape.num_heads / shape.num_heads_k)),
        head(head),
        q(b, shape.max_seqlen_q, shape.cu_seqlens_q, static_cast<int>(shape.total_q)),
        k(b, shape.max_seqlen_k, shape.cu_seqlens_k, static_cast<int>(shape.total_k)),
        n_q(q.length),
        n_k(k.length),
        shift(shape.cu_seqlens_q != nullptr ? k.length - q.length : 0) {
    if (shape.seqused_k != nullptr && shape.seqused_k[b] < n_k) n_k = shape.seqused_k[b];
  }

  // A tensor's first token of this sequence and of head `of`; strides: batch, token, head.
  template <class T>
  FTX_DEVICE const T* tokens(const void* x, const int64_t (&strides)[3], const Tokens& at, int of) const {
    return static_cast<const T*>(x) + b * strides[0] + at.first * strides[1] + of * strides[2];
  }

  // Where its queries begin in out, counted in rows of (num_heads, head_dim_v), and in softmax_lse.
  FTX_DEVICE int64_t out_row(const AttentionShape& shape) const {
    return shape.cu_seqlens_q != nullptr ? q.first : static_cast<int64_t>(b) * shape.max_seqlen_q;
  }
  FTX_DEVICE int64_t lse_row(const AttentionShape& shape) const {
    return shape.cu_seqlens_q != nullptr ? h * shape.total_q + q.first
                                         : static_cast<int64_t>(head) * shape.max_seqlen_q;
  }
};

// Those who do something together: this thread's number among them, and how many there are.
struct Team {
  int thread, threads;

  FTX_DEVICE static Team of_warp() { return {static_cast<int>(threadIdx.x % 32), 32}; }
  FTX_DEVICE static Team of_block() { return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)}; }
};

// Rows first .. end - 1 of a matrix become `value`.
template <class T>
FTX_DEVICE void fill_rows(T* x, int64_t stride, int columns, int first, int end, float value, const Team& team) {
  for (int row = first; row < end; row++) {
    for (int i = team.thread; i < columns; i += team.threads) from_float(value, x + row * stride + i);
  }
}

// Writes the rows of a packed tensor that no tile of sequence b covers: `lost` before the first sequence, and where one
// is longer than max_seqlen; `none` after the last sequence.
template <class T>
FTX_DEVICE void fill_uncovered(T* x, int64_t stride, int columns, int b, int batch, const Tokens& at, int64_t total,
                               float lost, float none, const Team& team) {
  if (b == 0) fill_rows(x, stride, columns, 0, at.first, lost, team);
  fill_rows(x, stride, columns, at.first + at.length, at.end, lost, team);
  if (b + 1 == batch) fill_rows(x, stride, columns, at.end, static_cast<int>(total), none, team);
}

// Of a forward's results for one head: out 0 and lse -inf, and NaN where it is lost.
template <class T>
FTX_DEVICE void fill_uncovered_results(T* out, int64_t out_stride, float* lse, const AttentionShape& shape,
                                       const HeadWork& work, const Team& team) {
  fill_uncovered(out, out_stride, shape.head_dim_v, work.b, shape.batch, work.q, shape.total_q, NAN, 0.0f, team);
  fill_uncovered(lse + work.h * shape.total_q, 1, 1, work.b, shape.batch, work.q, shape.total_q, NAN, -INFINITY, team);
}

}  // namespace fasttx
