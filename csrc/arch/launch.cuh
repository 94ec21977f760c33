// The two ways a kernel is compiled: by nvcc for a GPU, and by g++ for the emulator (tests/emulator).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "../common/types.h"

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

// Starts kernel(params), with `shared_bytes` of dynamic shared memory. Throws std::runtime_error, which names the
// kernel, the launch, `shape` and the device.
template <class Params>
void launch(const char* name, const std::string& shape, void (*kernel)(Params), dim3 grid, dim3 block, Stream stream,
            const Params& params, size_t shared_bytes = 0) {
#ifdef FASTTX_EMULATE
  static_cast<void>(shape);
  static_cast<void>(stream);
  auto body = [&] { kernel(params); };
  ::emu::launch_kernel(name, grid, block, shared_bytes, body);
#else
  constexpr size_t kWithoutAsking = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(params);
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) return;
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  throw std::runtime_error(std::string(name) + " of " + shape + " on device " + std::to_string(device) + ", sm_" +
                           std::to_string(major * 10 + minor) + ", grid " + std::to_string(grid.x) + ", block " +
                           std::to_string(block.x) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
#endif
}

}  // namespace fasttx
