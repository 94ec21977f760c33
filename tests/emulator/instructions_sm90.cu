// One kernel for each wrapper of csrc/arch that needs Hopper: registers and shared memory go in and come out
// as they are, so that a test can hold every bit to the documented layout.
// One fault at a time on request.
#include "arch/mbarrier.cuh"
#include "arch/registers.cuh"
#include "arch/tma.cuh"
#include "arch/wgmma.cuh"
#include "gemm.cuh"

using namespace fasttx;

namespace {
enum Fault {
  kNone,
  // of mbarriers
  kOneArrivalTooMany,
  kNoMbarrierWait,  // a buffer is read before it is written
  kInitTwice,
  kPhaseBefore,        // a wait for the phase that has ended, while the next is under way
  kInitBehindShuffle,  // lanes use an mbarrier that they have met, but that nothing orders before them
  // of wgmma
  kNoProxyFence,       // it reads what a thread wrote, without fence.proxy.async
  kProxyFenceTooLate,  // the fence follows the barrier
  kOperandInTile,      // an operand begins within a tile of the swizzle
  kOtherSwizzle,       // a descriptor that names another one
  kBaseOffset,         // or a base offset
  kOperandsDiffer,     // between threads of the warpgroup
  kWarpExits,          // a warp of the four has ended
  kThreeWarps,         // or never was
  kTooMuchShared,      // more shared memory than a block can have
  // of products in a pipeline
  kNoFenceInPipeline,   // an accumulator is written while the group of another one is under way, and no fence follows
  kNoFenceOfOperand,    // likewise registers of an operand
  kOperandOverwritten,  // registers of an operand, while a product reads them
  // of setmaxnreg
  kRegistersDiffer,  // in one warpgroup
  kTooManyRegisters,
};

struct Params {
  uint32_t* out;
  const uint32_t* a;
  const uint32_t* b;
  int n, fault;
};

// out (n, 32) = a (n, 32) reversed within each row: warp 0 writes a row, warp 1 reads it and gives the place back
__global__ void mbarrier_kernel(const __grid_constant__ Params p) {
  FTX_SHARED(uint32_t, row, 32);
  FTX_SHARED(uint64_t, barriers, 2);
  const int lane = threadIdx.x % 32;
  const uint32_t full = shared_address(barriers), empty = full + 8;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 32);
    if (has(p, kInitTwice)) mbarrier_init(full, 32);
    mbarrier_init(empty, 32);
  }
  if (has(p, kInitBehindShuffle)) {
    if (threadIdx.x >= 32) return;
    __shfl_sync(0xffffffffu, 0, 0);
  } else {
    __syncthreads();
  }
  if (has(p, kPhaseBefore)) {
    if (threadIdx.x == 0) row[0] = 1;
    if (threadIdx.x == 0) mbarrier_arrive(full);
    if (threadIdx.x == 32) mbarrier_wait(full, 1);
    if (threadIdx.x == 32) p.out[0] = row[0];
    return;
  }
  for (int i = 0; i < p.n; i++) {
    if (threadIdx.x < 32) {
      mbarrier_wait(empty, (i + 1) % 2);
      row[lane] = p.a[i * 32 + lane];
      mbarrier_arrive(full);
      if (has(p, kOneArrivalTooMany) && lane == 7) mbarrier_arrive(full);
    } else {
      if (!has(p, kNoMbarrierWait)) mbarrier_wait(full, i % 2);
      p.out[i * 32 + lane] = row[31 - lane];
      mbarrier_arrive(empty);
    }
  }
}

struct TmaParams {
  uint32_t* out;
  TensorMap map;
  int row, column, i, j;
};

// out (64, 32 words) = a box of 64 rows, as it lies in shared memory
__global__ void tma_kernel(const __grid_constant__ TmaParams p) {
  FTX_DYNAMIC_SHARED(memory, 1024);
  const uint32_t shared = shared_address(memory), barrier = shared + kTileBytes;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect_tx(barrier, kTileBytes);
    tma_load(shared, p.map, barrier, p.row, p.column, p.i, p.j);
  }
  __syncthreads();  // the mbarrier
  mbarrier_wait(barrier, 0);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(memory);
  for (int i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) p.out[i] = words[i];
}

// out (thread, 32) = a times b, both given as they lie in shared memory
template <class T, bool kTransposedB>
__global__ void wgmma_kernel(const __grid_constant__ Params p) {
  FTX_DYNAMIC_SHARED(memory, 1024);
  constexpr int kNextB = kTransposedB ? 2 * 1024 : 32;
  uint32_t* words = reinterpret_cast<uint32_t*>(memory);
  for (int i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) {
    words[i] = p.a[i];
    words[i + kTileBytes / 4] = p.b[i];
  }
  if (!has(p, kNoProxyFence) && !has(p, kProxyFenceTooLate)) fence_proxy_async();
  __syncthreads();  // the operands
  if (has(p, kProxyFenceTooLate)) fence_proxy_async();
  const uint32_t a = shared_address(memory), b = a + kTileBytes;
  Sum<T> d[32];
  wgmma_fence(d);
#pragma unroll
  for (int k = 0; k < kTileRow / 32; k++) {
    uint64_t of_a = wgmma_descriptor(a + 32 * k + (has(p, kOperandInTile) ? 128 : 0));
    if (has(p, kOtherSwizzle)) of_a ^= uint64_t{3} << 62;
    if (has(p, kBaseOffset)) of_a |= uint64_t{1} << 49;
    if (has(p, kOperandsDiffer) && threadIdx.x == 77) of_a += 2;
    if (has(p, kWarpExits) && threadIdx.x / 32 == 2) return;
    wgmma<T, kTransposedB>(d, of_a, wgmma_descriptor(b + kNextB * k), k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>(d);
  for (int i = 0; i < 32; i++) reinterpret_cast<Sum<T>*>(p.out)[threadIdx.x * 32 + i] = d[i];
}

// How a product has its operands: as documented in wgmma.cuh.
enum class Form { kBothKMajor, kTransposedB, kTransposedA, kRegisters, kRegistersTransposedB };

// out (thread, kN / 2) = a times b over 128 bytes of k, both given as they lie in shared memory, or a as registers:
// (k / 32 bytes, thread, 4). b is of kN rows, or has tiles of 64 columns.
template <class T, int kN, Form kForm>
__global__ void wide_kernel(const __grid_constant__ Params p) {
  FTX_DYNAMIC_SHARED(memory, 1024);
  constexpr bool kTransposedB = kForm == Form::kTransposedB || kForm == Form::kRegistersTransposedB;
  constexpr bool kTransposedA = kForm == Form::kTransposedA;
  constexpr int kBytesB = (kN + 63) / 64 * kTileBytes;
  uint32_t* words = reinterpret_cast<uint32_t*>(memory);
  for (int i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) words[i] = p.a[i];
  for (int i = threadIdx.x; i < kBytesB / 4; i += blockDim.x) words[i + kTileBytes / 4] = p.b[i];
  fence_proxy_async();
  __syncthreads();  // the operands
  const uint32_t shared = shared_address(memory);
  const uint64_t a = wgmma_descriptor(shared),
                 b = wgmma_descriptor(shared + kTileBytes, kTransposedB ? kTileBytes : 16);
  Sum<T> d[kN / 2];
  uint32_t held[4][4];
  for (int k = 0; k < 4; k++) {
    for (int i = 0; i < 4; i++) held[k][i] = p.a[(k * 128 + threadIdx.x) * 4 + i];
  }
  wgmma_fence(d, held[0], held[1], held[2], held[3]);
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const uint64_t of_b = b + k * (kTransposedB ? 2 * 1024 / 16 : 32 / 16);
    if constexpr (kForm == Form::kRegisters || kForm == Form::kRegistersTransposedB) {
      wgmma<T, kTransposedB>(d, held[k], of_b, k > 0);
    } else {
      wgmma<T, kTransposedB, kTransposedA>(d, a + k * (kTransposedA ? 2 * 1024 / 16 : 32 / 16), of_b, k > 0);
    }
  }
  wgmma_commit();
  if (has(p, kOperandOverwritten)) held[1][2] ^= 1;
  wgmma_wait<0>(d, held[0], held[1], held[2], held[3]);
  for (int i = 0; i < kN / 2; i++) reinterpret_cast<Sum<T>*>(p.out)[threadIdx.x * kN / 2 + i] = d[i];
}

// out (thread, 32) = 2 (a b) + a b + a b over 32 bytes of k: of two accumulators the first is waited for, doubled and
// used again, while the second is under way; all of a comes from registers as in wide_kernel
__global__ void pipeline_kernel(const __grid_constant__ Params p) {
  FTX_DYNAMIC_SHARED(memory, 1024);
  uint32_t* words = reinterpret_cast<uint32_t*>(memory);
  for (int i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) words[i] = p.b[i];
  fence_proxy_async();
  __syncthreads();  // the operand
  const uint64_t b = wgmma_descriptor(shared_address(memory));
  float first[32], second[32];
  uint32_t a[4], other[4];
  for (int i = 0; i < 4; i++) a[i] = other[i] = p.a[threadIdx.x * 4 + i];
  wgmma_fence(first, second, a, other);
  wgmma<__half>(first, a, b, false);
  wgmma_commit();
  wgmma<__half>(second, other, b, false);
  wgmma_commit();
  wgmma_wait<1>(first, a);
  for (int i = 0; i < 32; i++) first[i] *= 2.0f;
  for (int i = 0; i < 4; i++) a[i] = other[i];
  if (!has(p, kNoFenceInPipeline) && !has(p, kNoFenceOfOperand)) wgmma_fence(first, a);
  if (has(p, kNoFenceOfOperand)) {
    wgmma<__half>(second, a, b, true);  // an accumulator that needs none: it is under way
  } else {
    wgmma<__half>(first, a, b, true);
  }
  wgmma_commit();
  wgmma_wait<0>(first, second, a, other);
  for (int i = 0; i < 32; i++) reinterpret_cast<float*>(p.out)[threadIdx.x * 32 + i] = first[i] + second[i];
}

// out (thread) = a (thread) for three warpgroups, two of which take registers from the third
__global__ void __launch_bounds__(384, 1) registers_kernel(const __grid_constant__ Params p) {
  if (threadIdx.x < 128) {
    registers_give<24>();
  } else if (has(p, kRegistersDiffer) && threadIdx.x / 32 == 6) {
    registers_take<232>();
  } else if (has(p, kTooManyRegisters)) {
    registers_take<256>();
  } else {
    registers_take<240>();
  }
  p.out[threadIdx.x] = p.a[threadIdx.x];
}

void start(void (*kernel)(Params), int threads, const Params& p, size_t shared_bytes = 0) {
  launch("instruction", "", kernel, dim3(1), dim3(threads), nullptr, p, shared_bytes);
}
}  // namespace

#ifdef FASTTX_EMULATE
FTX_EXPORT uint64_t descriptor_of(uint32_t address) {
  return wgmma_descriptor(address);
}
#endif

// type: 0 fp16, 1 bf16, 2 int8
FTX_EXPORT const char* run_mbarrier(uint32_t* out, const uint32_t* a, int rows, int fault) {
  return reported([&] { start(mbarrier_kernel, 64, Params{out, a, nullptr, rows, fault}); });
}

FTX_EXPORT const char* run_tma(uint32_t* out, const void* a, int element_bytes, int rows, int columns, int stride,
                               int row, int column) {
  return reported([&] {
    const uint64_t row_bytes = static_cast<uint64_t>(stride) * element_bytes;
    const TmaParams p{out, make_tensor_map(a, element_bytes, rows, columns, row_bytes, kTile), row, column, 0, 0};
    launch("instruction", "", tma_kernel, dim3(1), dim3(64), nullptr, p, kTileBytes + 8);
  });
}

// a (batches, rows, heads, stride), of which a matrix has the first `columns`: head i of batch j
FTX_EXPORT const char* run_tma_of_heads(uint32_t* out, const void* a, int element_bytes, int batches, int rows,
                                        int heads, int columns, int stride, int row, int column, int i, int j) {
  return reported([&] {
    const uint64_t head_bytes = static_cast<uint64_t>(stride) * element_bytes, row_bytes = head_bytes * heads;
    const uint64_t sizes[4] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows),
                               static_cast<uint64_t>(heads), static_cast<uint64_t>(batches)};
    const uint64_t bytes[3] = {row_bytes, head_bytes, row_bytes * rows};
    const TmaParams p{out, make_tensor_map(a, element_bytes, sizes, bytes, kTile), row, column, i, j};
    launch("instruction", "", tma_kernel, dim3(1), dim3(64), nullptr, p, kTileBytes + 8);
  });
}

FTX_EXPORT const char* run_wgmma(uint32_t* d, const uint32_t* a, const uint32_t* b, int type, int transposed_b,
                                 int fault) {
  return reported([&] {
    auto* kernel = type == 2   ? wgmma_kernel<int8_t, false>
                   : type == 1 ? (transposed_b ? wgmma_kernel<__nv_bfloat16, true> : wgmma_kernel<__nv_bfloat16, false>)
                               : (transposed_b ? wgmma_kernel<__half, true> : wgmma_kernel<__half, false>);
    const size_t shared_bytes = fault == kTooMuchShared ? 228 << 10 : 2 * kTileBytes;
    start(kernel, fault == kThreeWarps ? 96 : 128, Params{d, a, b, 0, fault}, shared_bytes);
  });
}

namespace {
template <class T, Form kForm, int... kN>
void start_wide(int n, const Params& p) {
  const auto one = [&](auto columns) {
    if (n == columns())
      start(wide_kernel<T, columns(), kForm>, 128, p, kTileBytes + (columns() + 63) / 64 * kTileBytes);
  };
  (one(std::integral_constant<int, kN>{}), ...);
}
}  // namespace

// form: as Form; fp16 for the transposed ones, bf16 and int8 (type 2) for the others
FTX_EXPORT const char* run_wide(uint32_t* d, const uint32_t* a, const uint32_t* b, int type, int n, int form,
                                int fault) {
  return reported([&] {
    const Params p{d, a, b, 0, fault};
    const Form f = static_cast<Form>(form);
    if (f == Form::kTransposedB) start_wide<__half, Form::kTransposedB, 8, 64, 96, 128, 256>(n, p);
    if (f == Form::kTransposedA) start_wide<__half, Form::kTransposedA, 64, 128>(n, p);
    if (f == Form::kRegistersTransposedB) start_wide<__half, Form::kRegistersTransposedB, 32, 64, 96, 128>(n, p);
    if (type == 1 && f == Form::kBothKMajor) {
      start_wide<__nv_bfloat16, Form::kBothKMajor, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256>(n, p);
    }
    if (type == 1 && f == Form::kRegisters) start_wide<__nv_bfloat16, Form::kRegisters, 64, 128>(n, p);
    if (type == 2 && f == Form::kBothKMajor) start_wide<int8_t, Form::kBothKMajor, 128, 256>(n, p);
    if (type == 2 && f == Form::kRegisters) start_wide<int8_t, Form::kRegisters, 64>(n, p);
  });
}

FTX_EXPORT const char* run_pipeline(uint32_t* out, const uint32_t* a, const uint32_t* b, int fault) {
  return reported([&] { start(pipeline_kernel, 128, Params{out, a, b, 0, fault}, kTileBytes); });
}

FTX_EXPORT const char* run_registers(uint32_t* out, const uint32_t* a, int fault) {
  return reported([&] { start(registers_kernel, 384, Params{out, a, nullptr, 0, fault}); });
}
