// TMA: boxes of a matrix in global memory, copied to shared memory by the copy engine. Compute capability 9.0.
//
// A box of `box_rows` rows of 128 bytes lands with the 128-byte swizzle: the 16-byte chunk c of row r at chunk
// c ^ (r % 8), in tiles of 8 rows that begin at a multiple of 1024 bytes. What lies outside of the matrix is 0.
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

// For a matrix of `rows` x `columns` elements of 1 or 2 bytes, its rows `row_bytes` apart. On the host. Base and
// row_bytes are multiples of 16. Throws std::runtime_error.
inline TensorMap make_tensor_map(const void* base, int element_bytes, uint64_t rows, uint64_t columns,
                                 uint64_t row_bytes, uint32_t box_rows) {
#ifdef FASTTX_EMULATE
  return {::emu::make_tensor_map(base, element_bytes, rows, columns, row_bytes, box_rows)};
#else
  // by the runtime, so that the module loads on a machine without a driver
  void* encode = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled");
  }
  TensorMap map;
  const cuuint64_t sizes[2] = {columns, rows}, strides[1] = {row_bytes};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(kTmaRowBytes / element_bytes), box_rows}, steps[2] = {1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
      &map, element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
      const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled of " + std::to_string(rows) + " x " + std::to_string(columns) +
                             ": error " + std::to_string(result));
  }
  return map;
#endif
}

// Starts the copy of the box whose first element is (row, column); its bytes are counted by the mbarrier. One thread.
FTX_DEVICE void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int row, int column) {
#ifdef FASTTX_EMULATE
  ::emu::tma_load(shared, map.fields, barrier, row, column);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared),
      "l"(&map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
#endif
}

}  // namespace fasttx
