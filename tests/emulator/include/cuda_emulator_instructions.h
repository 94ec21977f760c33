// What the wrappers of csrc/arch call in the emulator: one function an instruction. Layouts and rules stand there.
//
// Shared memory is addressed by the 32-bit numbers of emu::shared_address. Data of asynchronous copies and products
// appear at the wait for them; until then their place holds NaN, and an access to it is reported.
#pragma once
#include <cstdint>

namespace emu {

enum class Element { kF16, kBF16, kS8 };

// ---- instructions.cpp
uint32_t warp_uniform(uint32_t x);
void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b);
void mma_m16n8k32(int* d, const uint32_t* a, const uint32_t* b);
void ldmatrix_x4(uint32_t* r, uint32_t row, bool transposed);
void cp_async(uint32_t shared, const void* global, int valid_bytes);
void cp_async_commit();
void cp_async_wait(int groups_left);

// ---- sm90.cpp
struct TensorMap {
  const uint8_t* base;
  uint32_t element_bytes, box_rows;
  uint64_t sizes[4], bytes[3];  // columns, rows, matrices by either number; to the next row, to the next matrix
};

void mbarrier_init(uint32_t barrier, uint32_t arrivals);
void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void mbarrier_wait(uint32_t barrier, uint32_t parity);
void fence_proxy_async();
TensorMap make_tensor_map(const void* base, int element_bytes, const uint64_t (&sizes)[4], const uint64_t (&bytes)[3],
                          uint32_t box_rows);
void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int row, int column, int i, int j);

// ---- cluster.cpp
uint32_t cluster_rank();
uint32_t cluster_size();
void cluster_arrive(bool releases);  // what the thread wrote before; if not, that it has started alone
void cluster_wait();
uint32_t cluster_address(uint32_t shared, uint32_t rank);
void cluster_store(uint32_t address, const void* data, size_t bytes);

// ---- wgmma.cpp
struct Wgmma {
  Element element;
  void* d;
  uint64_t a, b;  // descriptors
  bool accumulate, transposed_a, transposed_b;
  int columns;
  const uint32_t* a_registers;  // nullptr: a is in shared memory
};

void wgmma_fence();
void wgmma(const Wgmma& product);
void wgmma_commit();
void wgmma_wait(int groups_left);

// ---- rendezvous.cpp
void named_barrier(unsigned number, unsigned threads, bool waits);
void set_registers(unsigned count, bool more);

}  // namespace emu
