// The part of a row that one block reads, and how it has it again in a second pass.
//
// A thread reads kItems columns of each tile of kGroup * kItems columns. Three forms:
//   resident  the row is one tile: what was read stays in registers
//   streamed  every tile is read from memory again
//   held      the blocks of a cluster share the row, a section of whole tiles each, and keep what they read in dynamic
//             shared memory, in its own type. A thread takes back what it put there itself: no barrier.
#pragma once
#include <type_traits>

#include "../arch/aligned.cuh"
#include "../arch/cluster.cuh"
#include "row_tile.cuh"

namespace fasttx {

enum class Form { kResident, kStreamed, kHeld };

// Columns of a section of a row of n_cols that `cluster` blocks share; the last ones may have fewer, or none.
template <int kTile>
__host__ __device__ inline uint32_t section_columns(uint32_t n_cols, uint32_t cluster) {
  return ((n_cols + kTile - 1) / kTile + cluster - 1) / cluster * kTile;
}

constexpr std::false_type kFirstPass;
constexpr std::true_type kSecondPass;

template <Form kForm, class T, int kGroup, int kItems, int kTensors = 1>
struct RowSection {
  static constexpr uint32_t kTile = kGroup * kItems, kTileBytes = kTile * sizeof(T);
  static constexpr bool kHolds = kForm == Form::kHeld;
  int64_t row;
  uint32_t first = 0, end;  // columns
  unsigned char* shared_copy = nullptr;

  FTX_DEVICE RowSection(int64_t row_of_group, int64_t n_cols) : row(row_of_group), end(static_cast<uint32_t>(n_cols)) {
    if constexpr (kHolds) {
      FTX_DYNAMIC_SHARED(memory, 16);
      shared_copy = memory;
      const uint32_t columns = section_columns<kTile>(end, cluster_size());
      row = blockIdx.x / cluster_size();
      first = cluster_rank() * columns;
      end = first + columns < end ? first + columns : end;
    }
  }

  // f(whole, its first column); `whole` as in each_tile_of, whose kOneLoop it takes.
  template <bool kOneLoop = false, class F>
  FTX_DEVICE void each_tile(bool aligned, F&& f) const {
    if constexpr (kForm == Form::kResident) {
      f(aligned && end == kTile, 0u);
    } else {
      each_tile_of<kTile, kOneLoop>(first, kTile, 0, end, aligned, f);
    }
  }

  // A tile of a tensor: read(tile) in a first pass; in a second one what was read then, if it is held.
  template <int kTensor = 0, bool kAgain, int kRun, class Read>
  FTX_DEVICE void load(std::bool_constant<kAgain>, uint32_t start, RowTile<T, kGroup, kItems, kRun>& tile,
                       Read&& read) const {
    if constexpr (!kHolds || !kAgain) read(tile);
    if constexpr (kHolds) {
#pragma unroll
      for (int item = 0; item < kItems; item += kVectorWidth<T>) {
        auto& vector = tile.runs[item / kRun].vectors[item % kRun / kVectorWidth<T>];
        if constexpr (kAgain) {
          vector = shared_vector<kTensor>(start, item);
        } else {
          shared_vector<kTensor>(start, item) = vector;
        }
      }
    }
  }

 private:
  // The vectors of neighbouring threads lie side by side, whatever columns they are: no bank conflicts.
  template <int kTensor>
  FTX_DEVICE Vector<T>& shared_vector(uint32_t start, int item) const {
    const uint32_t tile = (start - first) / kTile * kTensors + kTensor;
    return aligned_at<Vector<T>>(shared_copy + tile * kTileBytes +
                                 (item / kVectorWidth<T> * kGroup + threadIdx.x) * sizeof(Vector<T>));
  }
};

}  // namespace fasttx
