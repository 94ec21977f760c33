// What the products of this folder share: parameters, tile sizes, faults on request, and the report of a launch.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "arch/launch.cuh"

namespace fasttx {

// out (m x n) = a (m x k) times b, which is stored as (n x k), or as (k x n). Rows lie `stride` elements apart, a
// multiple of 16 bytes. out is contiguous, float or int32.
struct GemmParams {
  void* out;
  const void* a;
  const void* b;
  int m, n, k, stride_a, stride_b;
  int fault;
};

constexpr int kTile = 64;      // rows of a tile of a, and of b
constexpr int kTileRow = 128;  // bytes: the k of a tile, or its n where b is stored as (k x n)
constexpr int kTileBytes = kTile * kTileRow;

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, int8_t>, int, float>;

// Faults exist in the emulator alone: what nvcc compiles is the plain kernel.
template <class Params, class Fault>
FTX_DEVICE bool has([[maybe_unused]] const Params& p, [[maybe_unused]] Fault fault) {
#ifdef FASTTX_EMULATE
  return p.fault == fault;
#else
  return false;
#endif
}

// f(); what it reported, empty when nothing. On a GPU the kernels have ended by then.
template <class F>
const char* reported(F&& f) {
  static std::string report;
  report.clear();
  try {
    f();
#ifndef FASTTX_EMULATE
    const cudaError_t error = cudaDeviceSynchronize();
    if (error != cudaSuccess) report = std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
#endif
  } catch (const std::runtime_error& error) {
    report = error.what();
  }
  return report.c_str();
}

}  // namespace fasttx

#define FTX_EXPORT extern "C" __attribute__((visibility("default")))
