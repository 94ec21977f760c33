// How many blocks share a row.
#pragma once
#include "../arch/cluster.cuh"

namespace fasttx {

inline unsigned largest_cluster(const Device& device) {
  return device.arch >= 90 ? kMaxCluster : 1;
}

// `least` doubled as long as few rows leave multiprocessors idle: while each row finds twice as many of them, and a
// tile for each block. A pure function.
inline unsigned cluster_of_few_rows(unsigned least, int64_t n_rows, int64_t n_cols, int tile, const Device& device) {
  unsigned cluster = least;
  while (cluster < largest_cluster(device) && n_rows * 2 * cluster <= device.multiprocessors &&
         (2 * cluster - 1) * static_cast<int64_t>(tile) < n_cols) {
    cluster *= 2;
  }
  return cluster;
}

}  // namespace fasttx
