// A kernel of 128 threads a block that uses everything the emulator offers, and one fault at a time on request.
//
// Without a fault: sum = sum_i x_i, and out_i = x_i + x_{i+1}, the neighbour taken within the block.
#include <stdexcept>
#include <string>

#include "arch/aligned.cuh"

namespace {
enum Fault {
  kNone,
  kNoBarrier,            // neighbours are read before they are written
  kSharedOverflow,       // a store behind the end of a shared array
  kUninitialised,        // a load of shared memory that nobody wrote
  kEarlyExit,            // no fault: since Volta a barrier counts only threads that are still there
  kBarrierInBranch,      // half of a warp waits at a barrier, and the others for that half
  kHalfWarpShuffle,      // a full-mask shuffle that half of a warp reaches
  kShuffleFromOutside,   // a lane reads one that is not in the mask
  kNotInOwnMask,         // a lane calls with a mask that it is not in
  kTwoShuffles,          // lanes of one warp meet in different functions
  kSameWord,             // every thread of a block stores to one word
  kSameWordOfBlocks,     // two blocks store to the same words
  kReadOfOtherBlock,     // a block reads what another one writes
  kNoWarpBarrier,        // lanes of a warp exchange through shared memory without __syncwarp
  kReuseWithoutBarrier,  // a shared array is written again while others still read it
  kGlobalWriteOverflow,  // a store behind the end of a buffer
  kGlobalReadOverflow,   // a load behind the end of a buffer
  kGlobalReadUnderflow,  // a load in front of one
  kWriteToInput,         // a store into a buffer that is only read
  kPlainAndAtomic,       // an atomic addition and a plain store to one word
  kMisalignedVector,     // 16 bytes of a buffer at a multiple of 4
  kMisalignedShared,     // 16 bytes of shared memory at a multiple of 4
  kMisalignedWord,       // a float between two
  kMisalignedAtomic,     // an atomic addition there
  kTooManyThreads,       // a launch that no GPU accepts
};

// `bytes` behind p, as an address of floats.
float* behind(float* p, size_t bytes) {
  return reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(p) + bytes);
}

struct Params {
  float* x;
  float* sum;
  float* out;
  int n, fault;
};

__global__ void faulty_kernel(Params p) {
  FTX_SHARED(float, neighbours, 128);
  FTX_SHARED(float, partials, 4);
  const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t, lane = t % 32, fault = p.fault;
  const float v = i < p.n ? p.x[i] : 0.0f;
  if (fault == kUninitialised) p.out[0] = partials[t % 4];
  neighbours[t] = v;
  if (fault == kNoWarpBarrier) {
    const float other = neighbours[t ^ 1];
    if (i < p.n) p.out[i] = other;
    return;
  }
  __syncwarp();
  if (fault == kBarrierInBranch && lane < 16) __syncwarp();
  if (fault != kNoBarrier) __syncthreads();
  const float neighbour = neighbours[(t + 1) % 128];
  if (fault == kReuseWithoutBarrier) neighbours[t] = 0.0f;
  if (fault == kSharedOverflow && t == 5) neighbours[128] = 1.0f;
  float s = v;
  for (int lanes = 16; lanes > 0; lanes /= 2) s += __shfl_xor_sync(0xffffffffu, s, lanes);
  if (fault == kHalfWarpShuffle && lane < 16) s += __shfl_xor_sync(0xffffffffu, s, 1);
  if (fault == kShuffleFromOutside && lane < 16) s += __shfl_sync(0x0000ffffu, s, 20);
  if (fault == kNotInOwnMask) s += __shfl_sync(0x0000ffffu, s, 0);
  if (fault == kTwoShuffles) s += lane < 16 ? __shfl_sync(0xffffffffu, s, 0) : __shfl_xor_sync(0xffffffffu, s, 1);
  if (lane == 0) partials[t / 32] = s;
  if (fault == kEarlyExit && t >= 32 && t < 64) return;
  __syncthreads();
  if (t == 127) atomicAdd(p.sum, partials[0] + (fault == kEarlyExit ? 0.0f : partials[1]) + partials[2] + partials[3]);
  if (fault == kPlainAndAtomic && t == 3) *p.sum = 0.0f;
  if (fault == kMisalignedVector && t == 7) s += fasttx::aligned_at<float4>(p.x + 5).x;
  if (fault == kMisalignedShared && t == 7) fasttx::aligned_at<float4>(neighbours + 5).x = s;
  if (fault == kMisalignedWord && t == 7) *behind(p.out, 22) = s;
  if (fault == kMisalignedAtomic && t == 7) atomicAdd(behind(p.out, 22), s);
  if (fault == kSameWord) p.out[0] = v;
  if (fault == kSameWordOfBlocks) p.out[t] = v;
  if (fault == kReadOfOtherBlock && i < p.n) p.x[i] = p.x[(i + 128) % p.n];
  if (fault == kGlobalWriteOverflow && t == 0) p.out[p.n] = v;
  if (fault == kGlobalReadOverflow && t == 0) s = p.x[p.n];
  if (fault == kGlobalReadUnderflow && t == 0) s = p.x[-1];
  if (fault == kWriteToInput && t == 0 && blockIdx.x == 0) p.x[0] = s;
  if (i < p.n && fault != kSameWordOfBlocks && fault != kReadOfOtherBlock) {
    p.out[i] = v + neighbour + ((fault == kGlobalReadOverflow || fault == kGlobalReadUnderflow) && t == 0 ? s : 0.0f);
  }
}
}  // namespace

// The report of the emulator; empty when there is none.
extern "C" __attribute__((visibility("default"))) const char* run_faulty(float* x, float* sum, float* out, int n,
                                                                         int fault) {
  static std::string report;
  report.clear();
  try {
    fasttx::launch("faulty", "", faulty_kernel, dim3((n + 127) / 128), dim3(fault == kTooManyThreads ? 2048 : 128),
                   nullptr, Params{x, sum, out, n, fault});
  } catch (const std::runtime_error& error) {
    report = error.what();
  }
  return report.c_str();
}
