// Layer norm of a sum of embeddings, with dropout after it, token by token: forward and backward.
//
// Mathematics
//   z = word[id] + token_type[type] + position[pos],  xhat = (z - mean) rstd,
//   out = keep (xhat weight + bias) / (1 - p_hat)
//   backward, with dy = keep dout / (1 - p_hat) and g = dy weight:
//     dz = rstd (g - sum_j g_j / n - xhat sum_j g_j xhat_j / n),  dweight = sum over tokens of dy xhat,
//     dbias = sum over tokens of dy,  dtoken_type[t] = sum over tokens of type t of dz
//   The gradients of the word and position tables are sums of rows of dz, left to the caller.
//
// Contract
//   Groups, blocks, partial sums and their order are those of dropout_add_layer_norm.cuh: no atomics, bitwise
//   deterministic for a given number of blocks. A row with an id outside of its table reads nothing there and becomes
//   NaN. Sums by type are kept for tables of at most kMaxTypes rows. z is never written: backward gathers it again.
//   T is the element type of the tables and of out (of dout and dz), Any where they differ.
//
// Cost
//   About 12 flop an element forward, 16 backward; bytes: a row of each table and of out, or of dout, each table and
//   dz, and the ids; position and token-type rows come from L2. Two Philox calls for 16 elements. Shared memory: 128
//   bytes a reduction and, backward, 4 bytes a column where a warp has a row.
#pragma once
#include "../common/layer_norm.cuh"
#include "embedding_layer_norm.h"

namespace fasttx {

// Blocks a multiprocessor must hold: what ptxas may use of registers follows from it, and it must not spill. Backward
// keeps four sums beside two rows, forward one row.
constexpr int embedding_blocks(int group, int items, bool backward) {
  return (backward ? (items > 8 ? 384 : 512) : (items > 16 ? 512 : 768)) / block_threads(group);
}

// z += the row of the table that belongs to `row`.
template <class T, int kGroup, int kItems>
FTX_DEVICE void add_embedding(const RowPart<kGroup, kItems>& part, const EmbeddingTable& table, uint32_t row,
                              float (&z)[kItems]) {
  if (table.rows.data == nullptr) return;
  const int64_t id = index_at(table.ids, row % static_cast<uint32_t>(table.period));
  const bool inside = id >= 0 && id < table.n_rows;
  float values[kItems];
  if (inside) part.template load<T>(table.rows, id * part.n_cols, values);
#pragma unroll
  for (int i = 0; i < kItems; i++) z[i] = inside ? z[i] + values[i] : NAN;
}

template <class T, int kGroup, int kItems, class Params>
FTX_DEVICE void gather(const RowPart<kGroup, kItems>& part, const Params& p, int64_t row, float (&z)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; i++) z[i] = 0.0f;
  const uint32_t number = static_cast<uint32_t>(row);
  add_embedding<T>(part, p.word, number, z);
  add_embedding<T>(part, p.token_type, number, z);
  add_embedding<T>(part, p.position, number, z);
}

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup), embedding_blocks(kGroup, kItems, false))
    embedding_layer_norm_fwd_kernel(EmbeddingLayerNormFwdParams p) {
  FTX_SHARED(float, partials, 3 * kMaxWarps);
  const int64_t row = RowPlace<kGroup>().row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  const RowPart<kGroup, kItems> part(p.n_cols);
  float z[kItems];
  gather<T>(part, p, row, z);
  float mean, rstd;
  normalise(part, p.eps, partials, z, &mean, &rstd);
  scale_and_shift(part, p.weight, p.bias, z);
  apply_kept(kept(part, p.dropout, kEmbeddingTag, row), p.dropout, z);
  part.template store<T>(p.out, row * p.n_cols, z);
  if (part.thread == 0) {
    p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
}

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup), embedding_blocks(kGroup, kItems, true))
    embedding_layer_norm_bwd_kernel(EmbeddingLayerNormBwdParams p) {
  FTX_SHARED(float, partials, 2 * kMaxWarps);
  FTX_SHARED(float, sums, (kPartialFloats<kGroup, kItems>));
  const RowPlace<kGroup> at;
  const RowPart<kGroup, kItems> part(p.n_cols);
  const bool with_dz = p.dz.data != nullptr || p.dtoken_type.data != nullptr;
  const bool with_z = with_dz || p.dweight.data != nullptr;
  const int64_t step = static_cast<int64_t>(gridDim.x) * at.kRowsPerBlock;
  float dweight[kItems] = {}, dbias[kItems] = {}, dtype0[kItems] = {}, dtype1[kItems] = {};
  for (int64_t row = at.row; row < p.n_rows; row += step) {
    float xhat[kItems], dy[kItems];
    if (with_z) gather<T>(part, p, row, xhat);
    part.template load<T>(p.dout, row * p.stride_dm, dy);
    apply_kept(kept(part, p.dropout, kEmbeddingTag, row), p.dropout, dy);
#pragma unroll
    for (int i = 0; i < kItems; i++) dbias[i] += dy[i];
    if (!with_z) continue;

    const float mean = p.mean[row], rstd = p.rstd[row];
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      xhat[i] = (xhat[i] - mean) * rstd;  // not 0 beyond the end of the row, but dy is
      dweight[i] += dy[i] * xhat[i];
    }
    if (!with_dz) continue;

    scale_and_shift(part, p.weight, {}, dy);
    gradient_of_z(part, rstd, partials, xhat, dy);
    if (p.dz.data != nullptr) part.template store<T>(p.dz, row * p.n_cols, dy);
    if (p.dtoken_type.data == nullptr) continue;
    const int64_t type = index_at(p.token_type.ids, static_cast<uint32_t>(row) % p.token_type.period);
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      dtype0[i] += type == 0 ? dy[i] : 0.0f;
      dtype1[i] += type == 1 ? dy[i] : 0.0f;
    }
  }
  const int64_t next = p.programs * p.n_cols;
  float* partial = p.partial + blockIdx.x * p.n_cols;
  if (p.dweight.data != nullptr) {
    store_partial(part, partial, sums, dweight);
    partial += next;
  }
  if (p.dbias.data != nullptr) {
    store_partial(part, partial, sums, dbias);
    partial += next;
  }
  if (p.dtoken_type.data == nullptr) return;
  store_partial(part, partial, sums, dtype0);
  if (p.token_type.n_rows > 1) store_partial(part, partial + next, sums, dtype1);
}

}  // namespace fasttx
