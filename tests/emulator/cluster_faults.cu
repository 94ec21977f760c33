// A kernel whose blocks exchange words within their cluster, and one fault at a time on request.
//
// Without a fault: out_i = sum over the blocks of the cluster of x at the same place, plus x of the next block's.
#include "arch/cluster.cuh"
#include "gemm.cuh"

using namespace fasttx;

namespace {
constexpr int kThreads = 64, kBlocks = 8;

enum Fault {
  kNone,
  kEarlyExit,         // no fault: the barrier of a cluster counts only threads that are still there
  kNoFirstBarrier,    // a block is written to that may not have started
  kNoFirstWait,       // likewise
  kBarrierOfBlock,    // __syncthreads in place of the cluster's barrier
  kNoWait,            // words are read after the arrival
  kArriveRelaxed,     // an arrival that says that the block has started, in place of one that releases its stores
  kReuse,             // words are written again while others still read them
  kSameWord,          // two blocks store to one word
  kLateStore,         // into a block that may have exited
  kNoSuchRank,        // an address in a block that is none of the cluster
  kSharedOverflow,    // a store behind the end of another block's array
  kSharedMisaligned,  // and to an address that is no multiple of 4
  kNoAddress,         // and to one that lies in no block
  kStuck,             // a warp that waits in its block never reaches the barrier
  kHalfWarpArrives,   // .aligned: a warp arrives as a whole
  kArriveTwice,       // without a wait between
  kWaitFirst,         // without an arrival before
  kGlobalUnordered,   // a block reads from global memory what another one of its cluster writes
  kGlobalElsewhere,   // or one of another cluster
  kGridNoMultiple,    // launches that no GPU accepts
  kTooManyBlocks,
  kNoClusters,  // not below sm_90
  kTooManyThreads,
};

struct Params {
  const float* x;
  float* given;
  float* out;
  int fault;
};

__global__ void exchange_kernel(Params p) {
  FTX_SHARED(float, late, kThreads);
  FTX_SHARED(float, words, kMaxCluster* kThreads);
  const int t = threadIdx.x, i = blockIdx.x * kThreads + t;
  const uint32_t rank = cluster_rank(), size = cluster_size(), first = blockIdx.x - rank;
  if (has(p, kWaitFirst)) cluster_wait();
  if (!has(p, kNoFirstBarrier)) cluster_arrive_started();
  if (has(p, kArriveTwice)) cluster_arrive();
  const float v = p.x[i];
  p.given[i] = v;
  if (!has(p, kNoFirstBarrier) && !has(p, kNoFirstWait)) cluster_wait();
  const bool exits = has(p, kEarlyExit) && rank == 1 && t >= 32;
  if (exits) return;
  float* word = has(p, kSameWord) ? words + t : words + rank * kThreads + t;
  if (has(p, kSharedOverflow) && rank == 1) word += kMaxCluster * kThreads;
  for (uint32_t r = 0; r < size; r++) {
    const uint32_t to = has(p, kNoSuchRank) ? r + 1 : r;
    const uint32_t at = cluster_address(shared_address(word) + (has(p, kSharedMisaligned) ? 2 : 0), to);
    cluster_store(has(p, kNoAddress) && t == 3 ? at + (uint32_t{size} << 24) : at, v);
  }
  const uint32_t next = has(p, kGlobalElsewhere) ? (first + size) % kBlocks : first + (rank + 1) % size;
  const float unordered = has(p, kGlobalUnordered) ? p.given[next * kThreads + t] : 0.0f;
  if (has(p, kStuck) && rank == 1 && t < 32) __syncthreads();
  if (has(p, kHalfWarpArrives) && t < 16) cluster_arrive();
  if (has(p, kBarrierOfBlock)) {
    __syncthreads();
  } else {
    has(p, kArriveRelaxed) ? cluster_arrive_started() : cluster_arrive();
    if (!has(p, kNoWait)) cluster_wait();
  }
  float sum = unordered;
  for (uint32_t r = 0; r < size; r++) sum += has(p, kEarlyExit) && r == 1 && t >= 32 ? 0.0f : words[r * kThreads + t];
  p.out[i] = sum + (has(p, kEarlyExit) ? p.x : p.given)[next * kThreads + t];
  if (has(p, kReuse)) cluster_store(cluster_address(shared_address(word), (rank + 1) % size), 0.0f);
  if (has(p, kLateStore) && rank == 1) cluster_store(cluster_address(shared_address(late + t), 0), v);
}
}  // namespace

FTX_EXPORT const char* run_exchange(float* out, const float* x, float* given, int cluster, int fault) {
  return reported([&] {
    const int blocks = fault == kGridNoMultiple ? kBlocks + 1 : fault == kTooManyBlocks ? 16 : kBlocks;
    const int threads = fault == kTooManyThreads ? 2048 : kThreads;
    launch("exchange", "", exchange_kernel, dim3(blocks), dim3(threads), nullptr, Params{x, given, out, fault}, 0,
           fault == kTooManyBlocks ? 16 : cluster);
  });
}
