// Rows and the groups of threads that compute them: one thread, one warp, or several that are a whole block.
#pragma once
#include <cstdint>
#include <string>

#include "../arch/launch.cuh"

namespace fasttx {

// Threads of a block: 128 where a group is a warp or less, so that several groups share it; a larger one has barriers.
constexpr int block_threads(int group) {
  return group <= 32 ? 128 : group;
}

// The row of this thread's group, and which of its threads this one is.
template <int kGroup>
struct RowPlace {
  static constexpr int kBlock = block_threads(kGroup), kRowsPerBlock = kBlock / kGroup;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kGroup;
  uint32_t thread = threadIdx.x % kGroup;

  template <int kRun>
  FTX_DEVICE uint32_t column(uint32_t start, int item) const {  // item: first of a run
    return start + (item / kRun * kGroup + thread) * kRun;
  }
};

FTX_DEVICE uint32_t left_of(uint32_t n_cols, uint32_t col) {
  return col < n_cols ? n_cols - col : 0;
}

// A row of n_cols elements at `row`, counted from the multiple of 16 bytes at or before its first: it has the positions
// shift .. end - 1, and a run of 16 bytes at a multiple of its length is a vector of memory wherever the row begins.
template <class T>
struct AlignedRow {
  uint32_t shift, end;
  const T* origin;  // nothing before position `shift` is read

  FTX_DEVICE AlignedRow(const T* row, int64_t n_cols)
      : shift(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T))),
        end(shift + static_cast<uint32_t>(n_cols)),
        origin(row - shift) {}

  // Of a run at `position`: the elements low .. high - 1 are of this row.
  FTX_DEVICE uint32_t low(uint32_t position) const { return position < shift ? shift - position : 0; }
  FTX_DEVICE uint32_t high(uint32_t position) const { return left_of(end, position); }
};

// Starts a kernel with `blocks` blocks, of groups of `group` threads; `shared_bytes` and `cluster` are launch()'s.
template <class Params>
void launch_blocks(const char* name, const Params& params, void (*kernel)(Params), int group, int64_t blocks,
                   Stream stream, unsigned parts = 1, size_t shared_bytes = 0, unsigned cluster = 1) {
  const std::string shape = std::to_string(params.n_rows) + " x " + std::to_string(params.n_cols);
  launch(name, shape, kernel, dim3(blocks, parts), dim3(block_threads(group)), stream, params, shared_bytes, cluster);
}

// Starts a kernel with a group of threads for each of params.n_rows rows, `parts` times: gridDim.y.
template <class Params>
void launch_rows(const char* name, const Params& params, void (*kernel)(Params), int group, Stream stream,
                 unsigned parts = 1) {
  const int rows = block_threads(group) / group;
  launch_blocks(name, params, kernel, group, (params.n_rows + rows - 1) / rows, stream, parts);
}

}  // namespace fasttx
