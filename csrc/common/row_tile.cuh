// A tile of one tensor's row as a group of threads reads it: whole vectors, and single elements at a row's edges.
#pragma once
#include "rows.cuh"
#include "vectors.cuh"

namespace fasttx {

// A bool that is known when the kernel is compiled.
template <bool kValue>
struct Known {
  FTX_DEVICE constexpr operator bool() const { return kValue; }
};

// f(whole as Known): one branch for all that is read of a tile.
template <class F>
FTX_DEVICE void with_known(bool whole, F&& f) {
  whole ? f(Known<true>{}) : f(Known<false>{});
}
template <bool kValue, class F>
FTX_DEVICE void with_known(Known<kValue> whole, F&& f) {
  f(whole);
}

// What one thread has of a tile of kGroup * kItems positions: kItems of them, in runs of kRun, as they lie in memory.
// Several tiles are read before the first of them is widened.
template <class T, int kGroup, int kItems, int kRun = kVectorWidth<T>>
struct RowTile {
  static constexpr int kRuns = kItems / kRun;
  static_assert(kItems % kRun == 0, "a thread has whole runs");
  RawRun<T, kRun> runs[kRuns];

  // Reads origin[position] for low <= position < high in the tile that begins at `start`; what is not there is 0.
  // whole, a bool or Known: all of it is there, and `origin` lies at a multiple of 16 bytes, as `aligned` says else.
  template <class Whole>
  FTX_DEVICE void read(Whole whole, const RowPlace<kGroup>& at, const T* origin, uint32_t start, uint32_t low,
                       uint32_t high, bool aligned) {
    if (whole) {
      const T* first = origin + at.template column<kRun>(start, 0);  // one address, and offsets that are known
#pragma unroll
      for (int r = 0; r < kRuns; r++) runs[r].read(first + r * kGroup * kRun);
      return;
    }
#pragma unroll
    for (int r = 0; r < kRuns; r++) {
      const uint32_t first = at.template column<kRun>(start, r * kRun);
      runs[r] = {};
      if (is_inside(first, low, high, aligned)) runs[r].read(origin + first);
    }
#pragma unroll
    for (int r = 0; r < kRuns; r++) {
      const uint32_t first = at.template column<kRun>(start, r * kRun);
      if (is_inside(first, low, high, aligned) || first + kRun <= low || first >= high) continue;
      runs[r].read_part(origin + first, first < low ? low - first : 0, high - first);
    }
  }

  FTX_DEVICE void widen(float (&out)[kItems]) const {
#pragma unroll
    for (int r = 0; r < kRuns; r++) runs[r].widen(out + r * kRun);
  }

 private:
  FTX_DEVICE static bool is_inside(uint32_t first, uint32_t low, uint32_t high, bool aligned) {
    return aligned && first >= low && first + kRun <= high;
  }
};

// out[i] = `other` where that position of the tile is none of low .. high - 1; nothing where the tile is whole.
template <int kRun, int kGroup, int kItems, class Whole>
FTX_DEVICE void fill_outside(Whole whole, const RowPlace<kGroup>& at, uint32_t start, uint32_t low, uint32_t high,
                             float other, float (&out)[kItems]) {
  if (whole) return;
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    const uint32_t position = at.template column<kRun>(start, i / kRun * kRun) + i % kRun;
    if (position < low || position >= high) out[i] = other;
  }
}

// f(whole, its first position) for the tiles of kTile positions from `first` on, `step` apart, of a row that has the
// positions low .. end - 1: `whole` is Known<true> in a loop of its own, which has no branch for the row's edges.
// kOneLoop: one loop and a bool instead, for an f that is too long to be there twice.
template <uint32_t kTile, bool kOneLoop = false, class F>
FTX_DEVICE void each_tile_of(uint32_t first, uint32_t step, uint32_t low, uint32_t end, bool aligned, F&& f) {
  uint32_t start = first;
  if constexpr (kOneLoop) {
    for (; start < end; start += step) f(aligned && start >= low && start + kTile <= end, start);
    return;
  }
  while (start < end) {
    if (aligned && start >= low && start + kTile <= end) {
      do {
        f(Known<true>{}, start);
        start += step;
      } while (start + kTile <= end);
    } else {
      f(Known<false>{}, start);
      start += step;
    }
  }
}

}  // namespace fasttx
