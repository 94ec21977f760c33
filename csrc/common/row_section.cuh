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
#include "rows.cuh"
#include "vectors.cuh"

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

  template <class F>
  FTX_DEVICE void each_tile(F&& f) const {  // f(its first column)
    if constexpr (kForm == Form::kResident) {
      f(0u);
    } else {
      for (uint32_t start = first; start < end; start += kTile) f(start);
    }
  }

  // values = a run of a tensor whose first column in the tile is `item` of this thread: read(values) in a first pass;
  // in a second one what was read then, if it is held. The conversion from float is exact, since they were of that
  // type.
  template <int kRun, int kTensor = 0, bool kAgain, class Read>
  FTX_DEVICE void load(std::bool_constant<kAgain>, uint32_t start, int item, float* values, Read&& read) const {
    constexpr int kWidth = kVectorWidth<T>;
    if constexpr (!kHolds || !kAgain) read(values);
    if constexpr (kHolds) {
#pragma unroll
      for (int i = 0; i < kRun; i += kWidth) {
        Vector<T>& place = shared_vector<kTensor>(start, item + i);
        if constexpr (kAgain) {
          const Vector<T> vector = place;
#pragma unroll
          for (int j = 0; j < kWidth; j++) values[i + j] = to_float(vector.values[j]);
        } else {
          Vector<T> vector;
#pragma unroll
          for (int j = 0; j < kWidth; j++) from_float(values[i + j], &vector.values[j]);
          place = vector;
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
