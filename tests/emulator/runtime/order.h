// What memory.cpp and order.cpp share: a byte's history, and accesses held to it.
#pragma once
#include <string>
#include <vector>

#include "state.h"

namespace emu {
constexpr uint16_t kNobody = 0xffff;

// What is known of one byte. Two readers of different warps stand for all: a write is held against both.
struct Byte {
  uint32_t write_time = 0, read_time[2] = {0, 0}, write_block = 0, read_block = 0;
  uint16_t writer = kNobody, reader[2] = {kNobody, kNobody};
  bool written = false, by_atomic = false, in_flight = false;
};

// Who accesses, and what is ordered before it.
struct Access {
  bool write, is_atomic, is_shared;
  uint16_t agent;
  uint32_t time;
  const Clock& seen;
  void* code;
};

struct Extent {
  uintptr_t low, high;
  std::string name;
  bool writable;
  std::vector<Byte> bytes;
  bool holds(uintptr_t a, size_t n) const { return a >= low && a + n <= high; }
};

// Only while checks_order():
Access by_this_thread(bool write, bool is_atomic, bool is_shared, void* code);
void check_bytes(Extent& extent, uintptr_t address, size_t bytes, const Access& access);
void check_operand(Extent& extent, uintptr_t address, size_t bytes, unsigned first_thread, uint32_t group,
                   const Clock& seen, void* code);
Clock seen_by_all(unsigned first_thread, unsigned count);  // the latest times that all of them are ordered after
void mark_in_flight(Extent& extent, uintptr_t address, size_t bytes);
void mark_landed(Extent& extent, uintptr_t address, size_t bytes, unsigned rank, bool by_engine);
void order_of_launch(bool checks);
void order_of_cluster();
}  // namespace emu
