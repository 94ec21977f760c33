// The wrappers of csrc/arch/cluster.cuh, in a file of their own: unlike wgmma they exist on every device from 9.0 on.
#include "arch/cluster.cuh"
#include "gemm.cuh"

using namespace fasttx;

namespace {
struct Params {
  uint32_t* out;
  const uint32_t* a;
};

// Blocks of one warp. out (n, 10, 32): of each block the rows of a (n, 32) that the blocks of its cluster were given,
// by rank; in the last two rows the block's own rank and the cluster's size.
constexpr int kClusterRow = 32 * kMaxCluster + 64;

__global__ void cluster_kernel(const __grid_constant__ Params p) {
  FTX_SHARED(float, rows, 32 * kMaxCluster);
  const int lane = threadIdx.x;
  const uint32_t rank = cluster_rank(), size = cluster_size();
  float* out = reinterpret_cast<float*>(p.out) + blockIdx.x * kClusterRow;
  cluster_arrive_started();
  const float word = reinterpret_cast<const float*>(p.a)[blockIdx.x * 32 + lane];
  cluster_wait();  // and so have the others
  for (uint32_t r = 0; r < size; r++) cluster_store(cluster_address(shared_address(rows + 32 * rank + lane), r), word);
  cluster_arrive();
  cluster_wait();  // rows: written by all blocks
  for (uint32_t r = 0; r < size; r++) out[32 * r + lane] = rows[32 * r + lane];
  out[32 * kMaxCluster + lane] = static_cast<float>(rank);
  out[32 * kMaxCluster + 32 + lane] = static_cast<float>(size);
}
}  // namespace

FTX_EXPORT const char* run_cluster(uint32_t* out, const uint32_t* a, int blocks, int cluster) {
  return reported([&] {
    const Params p{out, a};
    launch("instruction", "", cluster_kernel, dim3(blocks), dim3(32), nullptr, p, 0, cluster);
  });
}
