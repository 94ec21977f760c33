// The two ways a kernel is compiled: by nvcc for a GPU, and by g++ for the emulator (tests/emulator).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "../common/types.h"

#ifdef FASTTX_EMULATE
#define FTX_DEVICE inline
#define FTX_SHARED(type, name, count)    \
  static const char name##_identity = 0; \
  type* name = static_cast<type*>(::emu::shared_array(&name##_identity, sizeof(type) * (count), alignof(type)))
#else
#include <cuda_runtime.h>
#define FTX_DEVICE __device__ __forceinline__
#define FTX_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace fasttx {

// Starts kernel(params). Throws std::runtime_error, which names the kernel, the launch, `shape` and the device.
template <class Params>
void launch(const char* name, const std::string& shape, void (*kernel)(Params), dim3 grid, dim3 block, Stream stream,
            const Params& params) {
#ifdef FASTTX_EMULATE
  static_cast<void>(shape);
  static_cast<void>(stream);
  auto body = [&] { kernel(params); };
  ::emu::launch_kernel(name, grid, block, body);
#else
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(params);
  const cudaError_t error = cudaGetLastError();
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
