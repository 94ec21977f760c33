// Which tile an int8 product takes: a function of its shape and the arch alone. The result does not depend on it.
//
// A block takes the clocks of whatever it waits for longest, and a multiprocessor takes its blocks one after another:
//   tensor cores   block_m block_n products a byte of k, `macs_a_clock`
//   shared memory  what the warps read and the copies write, 128 bytes a clock
//   L2             block_m + block_n bytes a byte of k, 64 a clock
// and an eighth of a clock an output. Besides, blocks that are on a multiprocessor at a time wait together,
// kStartClocks, for their first operands and their last stores.
#pragma once
#include <cstdint>

namespace fasttx {

constexpr int kInt8Threads = 128;

struct Int8Tile {
  int block_m, block_n, block_k;  // outputs, and bytes of k of a stage
  int warps_m, warps_n, warps_k;  // how the four warps share them; those of one output add their sums up at the end
  int stages;                     // of 48 KB together: no launch asks for more, and two blocks fit the smallest chips
  int passes;                     // in which the sums go through that memory
  int blocks;                     // on a multiprocessor at least, which bounds the registers of a thread
};

// From the one that moves the fewest bytes a product.
constexpr Int8Tile kInt8Tiles[] = {
    {128, 128, 64, 2, 2, 1, 3, 2, 2},  // warps of 64 x 64
    {64, 128, 64, 2, 2, 1, 4, 1, 3},   // of 32 x 64
    {64, 64, 128, 2, 2, 1, 3, 1, 4},   // of 32 x 32
    {32, 64, 128, 1, 2, 2, 4, 1, 4},   // of 32 x 32, half of k each: 16 x 32 would read half as much again
    {16, 32, 256, 1, 1, 4, 4, 1, 4},   // of 16 x 32, a quarter of k each
};
constexpr int kInt8TileCount = sizeof(kInt8Tiles) / sizeof(Int8Tile);
// Of rows that do not all lie at multiples of 16 bytes: their bytes go through registers.
constexpr int kInt8UnalignedTile = 2;

constexpr int kStartClocks = 2000;

// Multiprocessors of the largest chip of an arch.
constexpr int multiprocessors_of(int arch) {
  return arch >= 120 ? 170 : arch >= 100 ? 148 : arch >= 90 ? 132 : arch >= 89 ? 142 : arch >= 86 ? 84 : 108;
}

// int8 products of mma.sync a clock of a multiprocessor.
constexpr int macs_a_clock(int arch) {
  return arch == 80 || (arch >= 90 && arch < 120) ? 2048 : 1024;
}

constexpr int64_t blocks_of(const Int8Tile& tile, int64_t n_rows, int64_t n_out) {
  return ((n_rows + tile.block_m - 1) / tile.block_m) * ((n_out + tile.block_n - 1) / tile.block_n);
}

constexpr int64_t clocks_of(const Int8Tile& tile, int64_t n_rows, int64_t n_out, int64_t n_in, int arch) {
  const int64_t k = (n_in + tile.block_k - 1) / tile.block_k * tile.block_k;
  const int64_t edges = tile.block_m + tile.block_n;
  const int64_t read = tile.block_m * tile.warps_n + tile.block_n * tile.warps_m;
  const int64_t tensor = k * tile.block_m * tile.block_n / macs_a_clock(arch);
  const int64_t shared = k * (read + edges) / 128, l2 = k * edges / 64;
  const int64_t longest = tensor > shared ? (tensor > l2 ? tensor : l2) : (shared > l2 ? shared : l2);
  const int64_t blocks = blocks_of(tile, n_rows, n_out), one = multiprocessors_of(arch), full = one * tile.blocks;
  return (blocks + one - 1) / one * (longest + tile.block_m * tile.block_n / 8) +
         (blocks + full - 1) / full * kStartClocks;
}

// The number of the tile that takes the fewest clocks, of several the largest.
constexpr int int8_linear_config(int64_t n_rows, int64_t n_out, int64_t n_in, int arch) {
  int best = 0;
  for (int i = 1; i < kInt8TileCount; i++) {
    if (clocks_of(kInt8Tiles[i], n_rows, n_out, n_in, arch) < clocks_of(kInt8Tiles[best], n_rows, n_out, n_in, arch)) {
      best = i;
    }
  }
  return best;
}

}  // namespace fasttx
