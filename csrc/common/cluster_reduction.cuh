// Sums and maxima of a row that the blocks of a cluster share: each block sends its own to all of them, and every
// thread reads those of all blocks in the order of their ranks. So all of them get the same bits, each time.
#pragma once
#include "../arch/cluster.cuh"
#include "online_sum.cuh"

namespace fasttx {

// kCount floats of each block. One exchange a kernel: after it no block writes to another, and each may exit.
template <int kCount>
struct ClusterExchange {
  float* values;  // kMaxCluster * kCount floats of shared memory, by rank
  uint32_t size = cluster_size();
  float own[kCount];

  FTX_DEVICE explicit ClusterExchange(float* values) : values(values) {
    if (size > 1) cluster_arrive_started();
  }

  // Sends `own`, which every thread of the block has.
  FTX_DEVICE void run() {
    if (size == 1) return;
    cluster_wait();  // every block has started
    if (threadIdx.x < size) {
      const uint32_t mine = shared_address(values + cluster_rank() * kCount);
#pragma unroll
      for (int i = 0; i < kCount; i++) {
        cluster_store(cluster_address(mine + i * sizeof(float), threadIdx.x), own[i]);
      }
    }
    __syncwarp();  // a warp arrives as a whole
    cluster_arrive();
    cluster_wait();  // values: written by every block, read by all threads
  }

  FTX_DEVICE float of(uint32_t rank, int i) const { return size == 1 ? own[i] : values[rank * kCount + i]; }
};

// For kernels whose rows may have one block: then nothing.
template <bool kCluster, int kCount>
FTX_DEVICE auto cluster_exchange(float* values) {
  if constexpr (kCluster) {
    return ClusterExchange<kCount>(values);
  } else {
    return values;
  }
}

// Makes (m, l) of this block's part those of the row; m is then finite. For other sums that the caller has put into
// exchange.own[2 ...]: each(rank, the maximum of that block, exp(it - m)).
template <int kCount, class Each>
FTX_DEVICE void reduce_over_cluster(ClusterExchange<kCount>& exchange, OnlineSum& sum, Each each) {
  exchange.own[0] = sum.m;
  exchange.own[1] = sum.l;
  exchange.run();
  sum = OnlineSum{};
  for (uint32_t rank = 0; rank < exchange.size; rank++) sum.m = fmaxf(sum.m, exchange.of(rank, 0));
  sum.m = finite_max(sum.m);
  for (uint32_t rank = 0; rank < exchange.size; rank++) {
    const float m = exchange.of(rank, 0), alpha = exp_ftz(m - sum.m);
    sum.l += exchange.of(rank, 1) * alpha;
    each(rank, m, alpha);
  }
}

FTX_DEVICE float sum_over_cluster(ClusterExchange<1>& exchange, float value) {
  exchange.own[0] = value;
  exchange.run();
  float sum = 0.0f;
  for (uint32_t rank = 0; rank < exchange.size; rank++) sum += exchange.of(rank, 0);
  return sum;
}

}  // namespace fasttx
