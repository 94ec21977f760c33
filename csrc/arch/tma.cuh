// TMA: boxes of a matrix in global memory, copied to shared memory by the copy engine. Compute capability 9.0.
//
// A box of `box_rows` rows of 128 bytes lands with the 128-byte swizzle: the 16-byte chunk c of row r at chunk
// c ^ (r % 8), in tiles of 8 rows that begin at a multiple of 1024 bytes. What lies outside of the matrix is 0.
// One map may stand for many matrices of one size, by two numbers (a head and a batch, say): a box is of one of them.
#pragma once
#include <cstdint>
#include <stdexcept>

#include "launch.cuh"

#ifndef FASTTX_EMULATE
#include <cuda.h>
#endif

namespace fasttx {

constexpr int kTmaRowBytes = 128;

#ifdef FASTTX_EMULATE
struct TensorMap {
  ::emu::TensorMap fields;
};
#else
using TensorMap = CUtensorMap;  // a kernel's parameter struct that holds one is declared const __grid_constant__
#endif

#ifndef FASTTX_EMULATE
// By the runtime, so that the module loads on a machine without a driver; asked for once.
inline auto tensor_map_encoder() {
  static void* const encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const bool asked = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                                        &result) == cudaSuccess;
    return asked && result == cudaDriverEntryPointSuccess ? found : nullptr;
  }();
  if (encode == nullptr) throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode);
}
#endif

// For matrices of elements of 1 or 2 bytes. sizes: columns, rows, and how many there are by either number; bytes: from
// a row to the next, and from a matrix to the next by either number. On the host. Base and bytes are multiples of 16.
// Throws std::runtime_error.
inline TensorMap make_tensor_map(const void* base, int element_bytes, const uint64_t (&sizes)[4],
                                 const uint64_t (&bytes)[3], uint32_t box_rows) {
#ifdef FASTTX_EMULATE
  return {::emu::make_tensor_map(base, element_bytes, sizes, bytes, box_rows)};
#else
  TensorMap map;
  const cuuint64_t all_sizes[4] = {sizes[0], sizes[1], sizes[2], sizes[3]}, strides[3] = {bytes[0], bytes[1], bytes[2]};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(kTmaRowBytes / element_bytes), box_rows, 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result = tensor_map_encoder()(
      &map, element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, 4,
      const_cast<void*>(base), all_sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled of " + std::to_string(sizes[1]) + " x " +
                             std::to_string(sizes[0]) + ": error " + std::to_string(result));
  }
  return map;
#endif
}

// Starts the copy of the box whose first element is (row, column) of matrix (i, j); its bytes are counted by the
// mbarrier. One thread.
FTX_DEVICE void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int row, int column, int i = 0,
                         int j = 0) {
#ifdef FASTTX_EMULATE
  ::emu::tma_load(shared, map.fields, barrier, row, column, i, j);
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(column), "r"(row), "r"(i), "r"(j)
      : "memory");
#endif
}

// A matrix alone.
inline TensorMap make_tensor_map(const void* base, int element_bytes, uint64_t rows, uint64_t columns,
                                 uint64_t row_bytes, uint32_t box_rows) {
  return make_tensor_map(base, element_bytes, {columns, rows, 1, 1}, {row_bytes, row_bytes, row_bytes}, box_rows);
}

}  // namespace fasttx
