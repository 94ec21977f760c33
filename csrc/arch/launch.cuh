// The two ways a kernel is compiled: by nvcc for a GPU, and by g++ for the emulator (tests/emulator).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "../common/types.h"
#include "device.h"

#ifdef FASTTX_EMULATE
#define FTX_DEVICE inline __attribute__((always_inline))  // so that a report's source lines lead up to the kernel
#define FTX_SHARED(type, name, count)    \
  static const char name##_identity = 0; \
  type* name = static_cast<type*>(::emu::shared_array(&name##_identity, sizeof(type) * (count), alignof(type)))
#define FTX_DYNAMIC_SHARED(name, align) auto* name = static_cast<unsigned char*>(::emu::dynamic_shared(align))
#else
#include <cuda_runtime.h>
#define FTX_DEVICE __device__ __forceinline__
#define FTX_SHARED(type, name, count) __shared__ type name[count]
// The `shared_bytes` of the launch. All kernels of a file ask for one alignment: it is one symbol.
#define FTX_DYNAMIC_SHARED(name, align) \
  extern __shared__ __align__(align)    \
  unsigned char name[]
#endif

namespace fasttx {

// An address of shared memory as instructions take it.
FTX_DEVICE uint32_t shared_address(const void* p) {
#ifdef FASTTX_EMULATE
  return ::emu::shared_address(p);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#endif
}

// The device, and of its arch no more than what the kernel's code was compiled for: an H100 runs PTX for 8.0 too, in
// which a cluster has one block.
template <class Params>
Device device_of(void (*kernel)(Params)) {
  Device device = current_device();
#ifdef FASTTX_EMULATE
  static_cast<void>(kernel);
  const int code = ::emu::current_device().code;
#else
  cudaFuncAttributes attributes = {};
  const int code = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess ? attributes.ptxVersion : 0;
  cudaGetLastError();  // the launch reports it
#endif
  if (code < device.arch) device.arch = code;
  return device;
}

// Starts kernel(params), with `shared_bytes` of dynamic shared memory, in clusters of `cluster` blocks that are
// neighbours in x. Throws std::runtime_error, which names the kernel, the launch, `shape` and the device.
template <class Params>
void launch(const char* name, const std::string& shape, void (*kernel)(Params), dim3 grid, dim3 block, Stream stream,
            const Params& params, size_t shared_bytes = 0, unsigned cluster = 1) {
#ifdef FASTTX_EMULATE
  static_cast<void>(shape);
  static_cast<void>(stream);
  auto body = [&] { kernel(params); };
  ::emu::launch_kernel(name, grid, block, shared_bytes, cluster, body);
#else
  if (cluster > 1 && device_of(kernel).arch < 90) {
    throw std::runtime_error(std::string(name) + " of " + shape + ": clusters need code for sm_90 or later");
  }
  constexpr size_t kWithoutAsking = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute in_clusters = {};
    in_clusters.id = cudaLaunchAttributeClusterDimension;
    in_clusters.val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &in_clusters;
    config.numAttrs = cluster > 1 ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, params);
  }
  if (error == cudaSuccess) return;
  const Device device = current_device();
  cudaGetLastError();  // or the next one who asks would get this error again
  throw std::runtime_error(
      std::string(name) + " of " + shape + " on device " + std::to_string(current_device_number()) + ", sm_" +
      std::to_string(device.arch) + ", grid " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + ", block " +
      std::to_string(block.x) + ", cluster " + std::to_string(cluster) + ", " + std::to_string(shared_bytes) +
      " bytes of dynamic shared memory: " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
#endif
}

}  // namespace fasttx
