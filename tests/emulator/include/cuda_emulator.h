// What a kernel's source sees when g++ compiles it for the emulator: the CUDA language, and its functions over a warp.
//
// The blocks of one cluster run at a time and each CUDA thread is a fiber. A function over a warp suspends its caller
// until every lane of the mask has arrived. Types and conversions are those of the CUDA headers, whose host paths round
// as the device does.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_emulator_instructions.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __align__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// A plain static would be neither poisoned nor watched: shared memory is declared by FTX_SHARED (csrc/arch/launch.h).
#define __shared__ static_assert(false, "declare shared memory by FTX_SHARED");

namespace emu {

extern uint3 thread_index, block_index;
extern dim3 grid_size, block_size;

struct Device {
  int arch = 90, multiprocessors = 132;
  int code = 90;                // what kernels were compiled for: below 90 a cluster has one block for them
  size_t shared_bytes() const;  // that a block may have
};
Device current_device();  // as tests have set it

// Runs body(argument) for every thread of every block; throws std::runtime_error with a report on any violation.
// `cluster` blocks, neighbours in x, run together.
void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster, void (*body)(void*),
            void* argument);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

unsigned lane();
void barrier();
// slots[i] is what lane i passed; the last lane to arrive runs `exchange` for all of them.
using Exchange = void (*)(void** slots, unsigned mask);
void collective(const char* name, unsigned mask, void* slot, Exchange exchange, bool orders_memory);
// Shared memory of this block for `key`, poisoned at its first use; one address for all threads.
void* shared_array(const void* key, size_t bytes, size_t align);
void* dynamic_shared(size_t align);                 // what the launch asked for, aligned as said and no better
uint32_t shared_address(const void* p);             // as instructions take it
void check_alignment(const void* p, size_t bytes);  // fails where p is no multiple of `bytes`
// In a kernel compiled with hooks (hooks.cpp): an atomic access to watch, and that the module is compiled so.
void hook_atomic(const void* p, size_t bytes);
void hooks_present(const void* address_in_module);

template <class Kernel>
void launch_kernel(const char* name, dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster, Kernel& kernel) {
  launch(name, grid, block, shared_bytes, cluster, [](void* p) { (*static_cast<Kernel*>(p))(); }, &kernel);
}

template <class T>
struct Shuffle {
  T value;
  int source;
  T result;
};

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
  Shuffle<T> slot{value, source, value};
  Exchange exchange = [](void** slots, unsigned lanes) {
    for (int i = 0; i < 32; i++) {
      if (!(lanes >> i & 1)) continue;
      auto* mine = static_cast<Shuffle<T>*>(slots[i]);
      if (!(lanes >> mine->source & 1)) {
        fail("shuffle: lane %d reads lane %d, which is not in mask %08x", i, mine->source, lanes);
      }
      mine->result = static_cast<Shuffle<T>*>(slots[mine->source])->value;
    }
  };
  collective(name, mask, &slot, exchange, false);
  return slot.result;
}

template <class T, class Change>
__attribute__((noinline, no_sanitize("thread"))) T atomic(T* p, Change change) {
  hook_atomic(p, sizeof(T));
  T before = *p;
  *p = change(before);
  return before;
}

#ifdef __SANITIZE_THREAD__
namespace {
struct Hooked {
  Hooked() { hooks_present(this); }
} hooked;
}  // namespace
#endif
}  // namespace emu

#define threadIdx (::emu::thread_index)
#define blockIdx (::emu::block_index)
#define blockDim (::emu::block_size)
#define gridDim (::emu::grid_size)

inline void __syncthreads() {
  emu::barrier();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emu::collective("__syncwarp", mask, nullptr, nullptr, true);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  int lane = emu::lane();
  return emu::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  int lane = emu::lane(), source = lane ^ bits;
  return emu::shuffle("__shfl_xor_sync", mask, value, (source & ~(width - 1)) > (lane & ~(width - 1)) ? lane : source);
}

inline bool __any_sync(unsigned mask, bool value) {
  int any = value;
  for (int bits = 16; bits > 0; bits /= 2) any |= __shfl_xor_sync(mask, any, bits);
  return any != 0;
}

template <class T>
T atomicAdd(T* p, T value) {
  return emu::atomic(p, [=](T before) { return T(before + value); });
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t(a) * b) >> 32);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __expf(float x) {
  return expf(x);
}
inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
// Each rounded once: a volatile result is contracted with nothing.
inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline float __fadd_rn(float a, float b) {
  volatile float sum = a + b;
  return sum;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
