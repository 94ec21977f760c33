// Clusters: blocks that run at the same time and may write into each other's shared memory. Compute capability 9.0.
//
// A kernel started without a cluster is one of a single block, and so is every kernel below 9.0, where the rank is 0,
// the size 1, and nothing else of this file may be reached. All threads of a warp call the same barrier function.
//
// Before a thread stores into another block it has waited for a barrier at which that block arrived: only then has the
// block started. And a block must not exit while another may still store into it.
#pragma once
#include <cstdint>

#include "launch.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define FTX_NO_CLUSTERS
#endif

namespace fasttx {

constexpr int kMaxCluster = 8;  // what every device with clusters can start

FTX_DEVICE uint32_t cluster_rank() {
#ifdef FASTTX_EMULATE
  return ::emu::cluster_rank();
#elif defined(FTX_NO_CLUSTERS)
  return 0;
#else
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

FTX_DEVICE uint32_t cluster_size() {
#ifdef FASTTX_EMULATE
  return ::emu::cluster_size();
#elif defined(FTX_NO_CLUSTERS)
  return 1;
#else
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#endif
}

// Arrives at the cluster's barrier, to say that this block has started and no more. A wait has to follow. What the
// thread wrote before is not seen by those who wait, and needs no fence of the whole GPU for it.
FTX_DEVICE void cluster_arrive_started() {
#ifdef FASTTX_EMULATE
  ::emu::cluster_arrive(false);
#elif defined(FTX_NO_CLUSTERS)
  __trap();
#else
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

// Arrives at the cluster's barrier: what this thread wrote before is seen by those who wait. A wait has to follow.
FTX_DEVICE void cluster_arrive() {
#ifdef FASTTX_EMULATE
  ::emu::cluster_arrive(true);
#elif defined(FTX_NO_CLUSTERS)
  __trap();
#else
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// Waits until every thread of the cluster has arrived, or exited.
FTX_DEVICE void cluster_wait() {
#ifdef FASTTX_EMULATE
  ::emu::cluster_wait();
#elif defined(FTX_NO_CLUSTERS)
  __trap();
#else
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The address for cluster_store of what lies at `shared` in the block of that rank.
FTX_DEVICE uint32_t cluster_address([[maybe_unused]] uint32_t shared, [[maybe_unused]] uint32_t rank) {
#ifdef FASTTX_EMULATE
  return ::emu::cluster_address(shared, rank);
#elif defined(FTX_NO_CLUSTERS)
  __trap();
  return 0;
#else
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
#endif
}

FTX_DEVICE void cluster_store([[maybe_unused]] uint32_t address, [[maybe_unused]] float value) {
#ifdef FASTTX_EMULATE
  ::emu::cluster_store(address, &value, sizeof value);
#elif defined(FTX_NO_CLUSTERS)
  __trap();
#else
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
#endif
}

}  // namespace fasttx

#undef FTX_NO_CLUSTERS
