// What one thread holds of a row that a group of threads keeps in registers: which columns, how they get there, and
// which of them row-wise dropout keeps.
#pragma once
#include "elements.cuh"
#include "row_dropout.cuh"
#include "rows.cuh"

namespace fasttx {

constexpr int kRowRun = 8;  // 16 bytes of halves, side by side in a warp; half of a Philox call

// What one thread holds of a row of at most kGroup * kItems columns: kItems of them, in runs of kRowRun.
template <int kGroup, int kItems>
struct RowPart {
  uint32_t n_cols;
  uint32_t thread = threadIdx.x % kGroup;

  FTX_DEVICE explicit RowPart(int64_t n_cols) : n_cols(static_cast<uint32_t>(n_cols)) {}

  FTX_DEVICE uint32_t column(int item) const {  // item: first of a run
    return (item / kRowRun * kGroup + thread) * kRowRun;
  }

  // out = the row that begins at element `at`, 0 beyond its end. Where every run is whole and aligned, all loads are
  // on their way before the first is waited for.
  template <class T>
  FTX_DEVICE void load(const In& in, int64_t at, float (&out)[kItems]) const {
    with_element<T>(in.dtype, [&](auto type) {
      using E = typename decltype(type)::type;
      const E* row = static_cast<const E*>(in.data) + at;
      if (is_vector_aligned(row) && n_cols % kRowRun == 0) {
        constexpr int kWidth = kVectorWidth<E>;
        Vector<E> vectors[kItems / kWidth];
#pragma unroll
        for (int item = 0; item < kItems; item += kWidth) {
          const uint32_t col = column(item) + item % kRowRun;
          Vector<E>& vector = vectors[item / kWidth] = {};
          if (col < n_cols) vector = aligned_at<Vector<E>>(row + col);
        }
#pragma unroll
        for (int i = 0; i < kItems; i++) out[i] = to_float(vectors[i / kWidth].values[i % kWidth]);
      } else {
#pragma unroll
        for (int i = 0; i < kItems; i++) {
          const uint32_t col = column(i) + i % kRowRun;
          out[i] = col < n_cols ? to_float(row[col]) : 0.0f;
        }
      }
    });
  }

  template <class T>
  FTX_DEVICE void load_run(const In& in, int64_t at, int item, float* out) const {
    load_run_of<T, kRowRun>(in, at + column(item), left_of(n_cols, column(item)), out);
  }

  template <class T>
  FTX_DEVICE void store_run(const Out& out, int64_t at, int item, const float* in) const {
    store_run_of<T, kRowRun>(out, at + column(item), left_of(n_cols, column(item)), in);
  }

  template <class T>
  FTX_DEVICE void store(const Out& out, int64_t at, const float (&in)[kItems]) const {
#pragma unroll
    for (int item = 0; item < kItems; item += kRowRun) store_run<T>(out, at, item, in + item);
  }
};

FTX_DEVICE int64_t index_at(const Indices& indices, int64_t i) {
  return indices.is_long ? static_cast<const int64_t*>(indices.data)[i] : static_cast<const int32_t*>(indices.data)[i];
}

// The number of a row in its dropout mask.
FTX_DEVICE uint32_t mask_number(const Dropout& dropout, int64_t row) {
  return static_cast<uint32_t>(dropout.row_index.data == nullptr ? row : index_at(dropout.row_index, row));
}

// Bit i tells whether a thread's i-th column of a row is kept; all are without dropout.
template <int kGroup, int kItems>
FTX_DEVICE uint32_t kept(const RowPart<kGroup, kItems>& part, const Dropout& dropout, uint32_t tag, int64_t row) {
  static_assert(kItems <= 32, "one bit each");
  if (dropout.rng_state == nullptr) return ~0u;
  const RowDropout mask(dropout.rng_state, tag, dropout.threshold, dropout.keep_scale);
  const uint32_t number = mask_number(dropout, row);
  uint32_t bits = 0;
#pragma unroll
  for (int item = 0; item < kItems; item += kRowRun) bits |= mask.keep<kRowRun>(number, part.column(item)) << item;
  return bits;
}

// keep * values / (1 - p_hat)
template <int kItems>
FTX_DEVICE void apply_kept(uint32_t bits, const Dropout& dropout, float (&values)[kItems]) {
  if (dropout.rng_state == nullptr) return;
#pragma unroll
  for (int i = 0; i < kItems; i++) values[i] = bits >> i & 1 ? values[i] * dropout.keep_scale : 0.0f;
}

}  // namespace fasttx
