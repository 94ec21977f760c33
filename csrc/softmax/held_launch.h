// How many blocks hold a row that is longer than the registers of one.
#pragma once
#include "../common/cluster_size.h"
#include "softmax.cuh"

namespace fasttx {

struct HeldLaunch {
  unsigned cluster;     // blocks of a row; 0: it does not fit, and is streamed
  size_t shared_bytes;  // of each
};

constexpr int kSoftmaxLongGroup = 512;
constexpr size_t kHeldByOneOfTwo = 96 << 10;  // so that two blocks share a multiprocessor's 228 KiB
constexpr size_t kHeldBesides = 1 << 10;      // the kernels' own arrays, less than this

// A pure function. Clusters double while a block holds more than half a multiprocessor has, and where rows are few.
inline HeldLaunch held_launch(int64_t n_rows, int64_t n_cols, int column_bytes, const Device& device) {
  constexpr int kTile = kSoftmaxLongGroup * kSoftmaxItems;
  const auto bytes = [&](unsigned cluster) {
    return static_cast<size_t>(section_columns<kTile>(static_cast<uint32_t>(n_cols), cluster)) * column_bytes;
  };
  unsigned cluster = 1;
  while (cluster < largest_cluster(device) && bytes(cluster) > kHeldByOneOfTwo) cluster *= 2;
  cluster = cluster_of_few_rows(cluster, n_rows, n_cols, kTile, device);
  if (bytes(cluster) + kHeldBesides > device.shared_bytes) return {0, 0};
  return {cluster, bytes(cluster)};
}

}  // namespace fasttx
