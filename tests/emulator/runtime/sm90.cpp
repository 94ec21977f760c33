// mbarriers with phases and byte counts, and TMA: the copy engine lands its boxes in any order, at any time until
// somebody has waited for them.
#include <algorithm>
#include <utility>

#include "state.h"

namespace emu {
namespace {

struct Mbarrier {
  unsigned rank = 0;  // of its block
  uint32_t address = 0, arrivals = 0, pending = 0;
  int64_t bytes = 0;  // expected and not yet here; negative where data came before the word of them
  bool phase = false;
  Clock arriving, completed;  // of the threads and copies of the current phase; of all phases that have ended
  unsigned init_thread = 0;
  uint32_t init_time = 0;
  bool landed = false, unseen = false;  // a copy in this phase; one in an ended phase that nobody has waited for
  std::vector<unsigned> waiting;        // threads, for the end of the current phase
};

struct Chunk {
  uint32_t shared;
  uint8_t data[16];
};

struct Box {
  unsigned rank;
  uint32_t barrier;
  std::vector<Chunk> chunks;
};

std::vector<Mbarrier> barriers;
std::vector<Box> boxes;  // under way

Mbarrier& barrier_at(uint32_t address, const char* what, void* code) {
  shared_pointer(address, 8, 8, what, code);
  for (Mbarrier& b : barriers) {
    if (b.rank != running->rank || b.address != address) continue;
    access_shared(address, 8, false, code);  // the init must be ordered before
    return b;
  }
  fail("%s: there is no mbarrier at 0x%x%s", what, address, source_line(code).c_str());
}

void end_phase_if_complete(Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.phase = !b.phase;
  b.unseen |= std::exchange(b.landed, false);
  b.pending = b.arrivals;
  if (b.completed.empty()) {
    b.completed = std::exchange(b.arriving, {});
  } else {
    for (size_t i = 0; i < b.arriving.size(); i++) b.completed[i] = std::max(b.completed[i], b.arriving[i]);
  }
  for (unsigned thread : std::exchange(b.waiting, {})) {
    b.unseen = false;
    acquire(b.completed, thread);
    make_ready(thread);
  }
}
}  // namespace

void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  void* code = __builtin_return_address(0);
  shared_pointer(barrier, 8, 8, "mbarrier.init", code);
  access_shared(barrier, 8, true, code);
  for (const Mbarrier& b : barriers) {
    if (b.rank != running->rank || b.address != barrier) continue;
    fail("mbarrier.init: there is an mbarrier at 0x%x already%s", barrier, source_line(code).c_str());
  }
  Mbarrier b;
  b.rank = running->rank;
  b.address = barrier;
  b.arrivals = b.pending = arrivals;
  b.init_thread = running->thread;
  b.init_time = now(running->thread);
  barriers.push_back(std::move(b));
}

void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes) {
  void* code = __builtin_return_address(0);
  Mbarrier& b = barrier_at(barrier, "mbarrier.arrive", code);
  if (b.pending == 0) {
    fail("mbarrier.arrive: more arrivals than the %u of the phase%s", b.arrivals, source_line(code).c_str());
  }
  b.bytes += expected_bytes;
  b.pending--;
  release(b.arriving, running->thread);
  end_phase_if_complete(b);
}

void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  Mbarrier& b = barrier_at(barrier, "mbarrier.try_wait", __builtin_return_address(0));
  if (b.phase != (parity & 1)) {
    b.unseen = false;
    return acquire(b.completed, running->thread);
  }
  b.waiting.push_back(running->thread);
  wait_in("mbarrier.try_wait");
}

TensorMap make_tensor_map(const void* base, int element_bytes, const uint64_t (&sizes)[4], const uint64_t (&bytes)[3],
                          uint32_t box_rows) {  // the rules of cuTensorMapEncodeTiled
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0) fail("tensor map: %p is no multiple of 16", base);
  TensorMap map{static_cast<const uint8_t*>(base), static_cast<uint32_t>(element_bytes), box_rows, {}, {}};
  for (int i = 0; i < 4; i++) {
    map.sizes[i] = sizes[i];
    if (sizes[i] == 0 || sizes[i] > 1ull << 32) {
      fail("tensor map: a size of %llu", static_cast<unsigned long long>(sizes[i]));
    }
  }
  for (int i = 0; i < 3; i++) {
    map.bytes[i] = bytes[i];
    if (bytes[i] == 0 || bytes[i] % 16 != 0 || bytes[i] >= 1ull << 40) {
      fail("tensor map: %s %llu bytes apart", i == 0 ? "rows" : "matrices", static_cast<unsigned long long>(bytes[i]));
    }
  }
  if (box_rows == 0 || box_rows > 256) fail("tensor map: %u rows in a box", box_rows);
  return map;
}

void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int row, int column, int i, int j) {
  constexpr uint32_t kRow = 128, kChunk = 16;
  void* code = __builtin_return_address(0);
  shared_pointer(shared, map.box_rows * kRow, 128, "TMA load", code);
  const Mbarrier& b = barrier_at(barrier, "TMA load", code);
  if (checks_order() && !fenced(b.init_thread, b.init_time, last_seen(b.init_thread))) {
    fail("TMA load: no fence between the init of its mbarrier, by thread %u, and this copy%s", b.init_thread,
         source_line(code).c_str());
  }
  Box box{running->rank, barrier, {}};
  const auto inside = [&](int64_t at, int dim) { return at >= 0 && at < static_cast<int64_t>(map.sizes[dim]); };
  for (uint32_t r = 0; r < map.box_rows; r++) {
    int64_t y = static_cast<int64_t>(row) + r;
    for (uint32_t c = 0; c < kRow / kChunk; c++) {
      uint32_t address = shared + r * kRow + c * kChunk;
      Chunk chunk{address ^ (address / kRow % 8 * kChunk), {}};
      for (uint32_t e = 0; e < kChunk / map.element_bytes; e++) {
        int64_t x = static_cast<int64_t>(column) + c * (kChunk / map.element_bytes) + e;
        if (!inside(x, 0) || !inside(y, 1) || !inside(i, 2) || !inside(j, 3)) continue;
        const uint8_t* from = map.base + x * map.element_bytes + y * map.bytes[0] + i * map.bytes[1] + j * map.bytes[2];
        access(from, map.element_bytes, map.element_bytes, false, false, code);
        memcpy(chunk.data + e * map.element_bytes, from, map.element_bytes);
      }
      box.chunks.push_back(chunk);
    }
  }
  start_copy(shared, map.box_rows * kRow, code);
  boxes.push_back(std::move(box));
}

bool land_some_copy() {
  if (boxes.empty()) return false;
  size_t which = is_greedy() ? 0 : draw() % boxes.size();
  Box box = std::move(boxes[which]);
  boxes.erase(boxes.begin() + static_cast<ptrdiff_t>(which));
  for (Mbarrier& b : barriers) {
    if (b.rank != box.rank || b.address != box.barrier) continue;
    copy_has_landed(b.arriving, box.rank);
    for (const Chunk& chunk : box.chunks) land_copy(box.rank, chunk.shared, chunk.data, sizeof chunk.data, true);
    b.landed = true;
    b.bytes -= static_cast<int64_t>(box.chunks.size() * sizeof(Chunk::data));
    end_phase_if_complete(b);
  }
  return true;
}

std::string describe_barriers() {
  std::string text;
  for (const Mbarrier& b : barriers) {
    if (b.waiting.empty()) continue;
    char line[160];
    snprintf(line, sizeof line, "; the mbarrier at 0x%x%s, in a phase of parity %d, lacks %u arrivals and %lld bytes",
             b.address, of_rank(b.rank).c_str(), b.phase, b.pending, static_cast<long long>(b.bytes));
    text += line;
  }
  return text;
}

void barriers_of_cluster() {
  barriers.clear();
  boxes.clear();
}

void barriers_of_cluster_end() {
  std::vector<bool> unseen(blocks.size());
  for (const Box& box : boxes) unseen[box.rank] = true;
  for (const Mbarrier& b : barriers) unseen[b.rank] = unseen[b.rank] || b.landed || b.unseen;
  for (unsigned rank = 0; rank < blocks.size(); rank++) {
    const uint3 at = blocks[rank].index;
    if (unseen[rank]) fail("block (%u,%u,%u) ends with TMA loads that nobody has waited for", at.x, at.y, at.z);
  }
}
}  // namespace emu
