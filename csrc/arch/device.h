// What launchers ask of the device that they start kernels on.
#pragma once
#include <cstddef>

#ifndef FASTTX_EMULATE
#include <cuda_runtime.h>

#include <vector>
#endif

namespace fasttx {

struct Device {
  int arch = 0;  // 10 times the compute capability
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // that a block may have, if it asks
};

#ifdef FASTTX_EMULATE

inline Device current_device() {
  const ::emu::Device device = ::emu::current_device();
  return {device.arch, device.multiprocessors, device.shared_bytes()};
}

#else

inline int current_device_number() {
  int number = 0;
  cudaGetDevice(&number);
  return number;
}

// Asked for once in a process, without a context. Zeros where there is no driver: the launch reports that.
inline Device current_device() {
  static const std::vector<Device> devices = [] {
    int count = 0;
    cudaGetDeviceCount(&count);
    std::vector<Device> found(count);
    for (int i = 0; i < count; i++) {
      int major = 0, minor = 0, shared_bytes = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i);
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, i);
      cudaDeviceGetAttribute(&found[i].multiprocessors, cudaDevAttrMultiProcessorCount, i);
      found[i].arch = 10 * major + minor;
      found[i].shared_bytes = static_cast<size_t>(shared_bytes);
    }
    return found;
  }();
  const size_t number = static_cast<size_t>(current_device_number());
  return number < devices.size() ? devices[number] : Device{};
}

#endif

}  // namespace fasttx
