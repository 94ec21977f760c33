// One kernel for each wrapper of csrc/arch that runs since Ampere: registers and shared memory go in and come out
// as they are, so that a test can hold every bit to the documented layout.
#include "arch/cp_async.cuh"
#include "arch/ldmatrix.cuh"
#include "arch/math.cuh"
#include "arch/mma.cuh"
#include "arch/named_barrier.cuh"
#include "arch/warp.cuh"
#include "gemm.cuh"

using namespace fasttx;

namespace {
enum Fault {
  kNone,
  kReadBeforeWait,  // bytes that held something else before, while a copy to them is under way
  kLanesDiffer,     // in a value that is said to be of the warp
  // of numbered barriers
  kNoSync,         // what another warp wrote is read without the barrier
  kOtherNumber,    // it arrives at another one
  kOtherThreads,   // or names another number of threads
  kArriveForSync,  // it does not wait
};

struct Params {
  uint32_t* out;
  const uint32_t* a;
  const uint32_t* b;
  int shift, fault;
};

// out (lane, 4) = a (lane, 4) times b (lane, 2) plus what out held
template <class T>
__global__ void mma_kernel(const __grid_constant__ Params p) {
  const int lane = threadIdx.x;
  Sum<T> d[4];
  uint32_t a[4];
  for (int i = 0; i < 4; i++) {
    a[i] = p.a[lane * 4 + i];
    d[i] = reinterpret_cast<Sum<T>*>(p.out)[lane * 4 + i];
  }
  mma<T>(d, a, p.b[lane * 2], p.b[lane * 2 + 1]);
  for (int i = 0; i < 4; i++) reinterpret_cast<Sum<T>*>(p.out)[lane * 4 + i] = d[i];
}

struct alignas(16) Rows {
  uint32_t words[32 * 4];
};

// out (lane, 4) = the registers of four matrices, whose 32 rows are a
template <bool kTransposed>
__global__ void ldmatrix_kernel(const __grid_constant__ Params p) {
  FTX_SHARED(Rows, rows, 1);
  const int lane = threadIdx.x;
  for (int i = 0; i < 4; i++) rows->words[lane * 4 + i] = p.a[lane * 4 + i];
  __syncwarp();
  uint32_t r[4];
  const uint32_t row = shared_address(rows) + 16 * lane;
  kTransposed ? ldmatrix_transposed(r, row) : ldmatrix(r, row);
  for (int i = 0; i < 4; i++) p.out[lane * 4 + i] = r[i];
}

// out (lane, 8) = two groups of 16 bytes a lane, of which lane % 17 and (lane + shift) % 17 are copied, the rest zeros
__global__ void cp_async_kernel(const __grid_constant__ Params p) {
  FTX_SHARED(Rows, rows, 2);
  const int lane = threadIdx.x;
  if (has(p, kReadBeforeWait)) rows[1].words[lane * 4] = 5;
  for (int group = 0; group < 2; group++) {
    const uint32_t* from = p.a + (group * 32 + lane) * 4;
    cp_async(shared_address(&rows[group]) + 16 * lane, from, (lane + group * p.shift) % 17);
    cp_async_commit();
  }
  cp_async_wait<1>();
  for (int i = 0; i < 4; i++) p.out[lane * 8 + i] = rows[0].words[lane * 4 + i];
  if (!has(p, kReadBeforeWait)) cp_async_wait<0>();
  for (int i = 0; i < 4; i++) p.out[lane * 8 + 4 + i] = rows[1].words[lane * 4 + i];
  cp_async_wait<0>();
}

// out (lane) = 2^a (lane), as floats
__global__ void exp2_kernel(const __grid_constant__ Params p) {
  reinterpret_cast<float*>(p.out)[threadIdx.x] = exp2_ftz(reinterpret_cast<const float*>(p.a)[threadIdx.x]);
}

// out (lane) = bytes of the two words of a (lane, 2), chosen by b (lane)
__global__ void permute_kernel(const __grid_constant__ Params p) {
  const int lane = threadIdx.x;
  p.out[lane] = permute_bytes(p.a[2 * lane], p.a[2 * lane + 1], p.b[lane]);
}

// out (lane, 2) = the floats of the pair of bfloat16 in a (lane)
__global__ void widen_kernel(const __grid_constant__ Params p) {
  float* out = reinterpret_cast<float*>(p.out) + 2 * threadIdx.x;
  widen_bf16(p.a[threadIdx.x], out[0], out[1]);
}

// out (64) = a (warp) for each thread of two warps
__global__ void uniform_kernel(const __grid_constant__ Params p) {
  const uint32_t warp = warp_uniform(threadIdx.x / 32 + (has(p, kLanesDiffer) && threadIdx.x == 37 ? 1 : 0));
  p.out[threadIdx.x] = p.a[warp];
}

// out (2, 32) = a (2, 32) reversed in each row: of four warps the first two write a row each, the others read one, and
// each pair has a barrier of its own
__global__ void named_barrier_kernel(const __grid_constant__ Params p) {
  FTX_SHARED(uint32_t, rows, 64);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp < 2) {
    rows[32 * warp + lane] = p.a[32 * warp + lane];
    if (warp == 0 && !has(p, kOtherNumber)) named_barrier_arrive<1, 64>();
    if (warp == 0 && has(p, kOtherNumber)) named_barrier_arrive<3, 64>();
    if (warp == 1) named_barrier_arrive<2, 64>();
    return;
  }
  const bool faulty = has(p, kNoSync) || has(p, kOtherThreads) || has(p, kArriveForSync);
  if (warp == 2 && has(p, kOtherThreads)) named_barrier_sync<1, 96>();
  if (warp == 2 && has(p, kArriveForSync)) named_barrier_arrive<1, 64>();
  if (warp == 2 && !faulty) named_barrier_sync<1, 64>();
  if (warp == 3) named_barrier_sync<2, 64>();
  p.out[32 * (warp - 2) + lane] = rows[32 * (warp - 2) + 31 - lane];
}

void start(void (*kernel)(Params), const Params& p, int threads = 32) {
  launch("instruction", "", kernel, dim3(1), dim3(threads), nullptr, p);
}
}  // namespace

// type: 0 fp16, 1 bf16, 2 int8
FTX_EXPORT const char* run_mma(uint32_t* d, const uint32_t* a, const uint32_t* b, int type) {
  return reported([&] {
    start(type == 0   ? mma_kernel<__half>
          : type == 1 ? mma_kernel<__nv_bfloat16>
                      : mma_kernel<int8_t>,
          Params{d, a, b, 0, 0});
  });
}

FTX_EXPORT const char* run_ldmatrix(uint32_t* out, const uint32_t* a, int transposed) {
  return reported(
      [&] { start(transposed ? ldmatrix_kernel<true> : ldmatrix_kernel<false>, Params{out, a, nullptr, 0, 0}); });
}

FTX_EXPORT const char* run_cp_async(uint32_t* out, const uint32_t* a, int shift, int fault) {
  return reported([&] { start(cp_async_kernel, Params{out, a, nullptr, shift, fault}); });
}

FTX_EXPORT const char* run_exp2(uint32_t* out, const uint32_t* a) {
  return reported([&] { start(exp2_kernel, Params{out, a, nullptr, 0, 0}); });
}

FTX_EXPORT const char* run_permute(uint32_t* out, const uint32_t* a, const uint32_t* b) {
  return reported([&] { start(permute_kernel, Params{out, a, b, 0, 0}); });
}

FTX_EXPORT const char* run_widen(uint32_t* out, const uint32_t* a) {
  return reported([&] { start(widen_kernel, Params{out, a, nullptr, 0, 0}); });
}

FTX_EXPORT const char* run_uniform(uint32_t* out, const uint32_t* a, int fault) {
  return reported([&] { start(uniform_kernel, Params{out, a, nullptr, 0, fault}, 64); });
}

FTX_EXPORT const char* run_named_barrier(uint32_t* out, const uint32_t* a, int fault) {
  return reported([&] { start(named_barrier_kernel, Params{out, a, nullptr, 0, fault}, 128); });
}
