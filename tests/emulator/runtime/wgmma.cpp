// wgmma: products of a warpgroup. Results appear in the registers at wgmma.wait_group, NaN until then; operands in
// shared memory are checked to be ordered before, and to be the same at the wait.
#include <algorithm>
#include <map>

#include "state.h"

namespace emu {
namespace {
constexpr uint32_t kNaN = 0x7fbadbad;  // of an accumulator in flight
constexpr int kSize = 64, kMaxColumns = 256, kOperandBytes = 32;
constexpr uint32_t kSwizzledColumns = 64;  // of 16 bits in a row of a tile

struct Pending {
  void* d;
  unsigned group;
  std::vector<uint32_t> values;
};

struct PendingA {  // registers of a, which nobody changes before the wait
  const uint32_t* a;
  unsigned group;
  uint32_t values[4];
};

struct ThreadState {
  std::vector<Pending> pending;
  std::vector<PendingA> pending_a;
  unsigned group = 0;  // that the next commit closes
  unsigned fences = 0;
  bool fenced = false;                        // since no product was under way
  std::map<const void*, unsigned> last_wait;  // of registers, by their address: how many fences there were by then
};

struct Chunk {
  uint32_t address;
  uint8_t data[16];
};

struct Operation {  // until each warp has waited for it
  unsigned first, group, warps;
  std::vector<Chunk> chunks;
};

struct Arguments {
  const Wgmma& product;
  void* code;
};

std::vector<ThreadState> threads;
std::vector<Operation> operations;

// An operand of `rows` (of M or N) by 32 bytes of k, row after row, from where its descriptor says that it lies.
std::vector<uint8_t> operand(uint64_t descriptor, unsigned element_bytes, bool mn_major, uint32_t rows,
                             Operation& operation, void* code) {
  uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  uint32_t leading = (descriptor >> 16 & 0x3fff) << 4;  // MN-major: from 64 rows to the next
  if (mn_major && rows > kSwizzledColumns && leading % 1024 != 0) {
    fail("wgmma: tiles of 64 of an MN-major operand %u bytes apart", leading);
  }
  if (descriptor >> 62 != 1) fail("wgmma: the emulator knows the 128-byte swizzle only");
  if (descriptor >> 49 & 7) fail("wgmma: the emulator knows no base offset");
  if (start & (mn_major ? 0x3ff : 0x380)) {
    fail("wgmma: an operand at 0x%x does not begin in the first row of a tile of 1024 bytes", start);
  }
  std::vector<uint8_t> values(rows * kOperandBytes);
  std::vector<uint32_t> chunks;
  for (uint32_t row = 0; row < rows; row++) {
    for (uint32_t k = 0; k < kOperandBytes / element_bytes; k++) {
      uint32_t a = start + (mn_major ? row / kSwizzledColumns * leading + k / 8 * stride + k % 8 * 128 +
                                           row % kSwizzledColumns * element_bytes
                                     : row / 8 * stride + row % 8 * 128 + k * element_bytes);
      a ^= a / 128 % 8 * 16;
      memcpy(&values[row * kOperandBytes + k * element_bytes],
             shared_pointer(a, element_bytes, element_bytes, "wgmma", code), element_bytes);
      chunks.push_back(a & ~15u);
    }
  }
  std::sort(chunks.begin(), chunks.end());
  chunks.erase(std::unique(chunks.begin(), chunks.end()), chunks.end());
  for (uint32_t address : chunks) {
    Chunk chunk{address, {}};
    memcpy(chunk.data, shared_pointer(address, 16, 16, "wgmma", code), 16);
    operation.chunks.push_back(chunk);
  }
  read_by_tensor_cores(chunks, 16, operation.first, operation.group + 1, code);
  return values;
}

// As of mma.sync, for each warp: register i of lane (g, t) holds row g + 8 (i % 2), 4 bytes of k from 4 t + 16 (i / 2).
std::vector<uint8_t> from_registers(void** slots) {
  std::vector<uint8_t> values(kSize * kOperandBytes);
  for (unsigned t = 0; t < 128; t++) {
    const uint32_t* r = static_cast<Arguments*>(slots[t])->product.a_registers;
    for (int i = 0; i < 4; i++) {
      unsigned row = t / 32 * 16 + t % 32 / 4 + 8 * (i % 2), at = 4 * (t % 4) + 16 * (i / 2);
      memcpy(&values[row * kOperandBytes + at], &r[i], sizeof r[i]);
    }
  }
  return values;
}

template <class Sum, class Value>
void multiply(void** slots, unsigned first, const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, int depth,
              Value value) {
  const int columns = static_cast<Arguments*>(slots[0])->product.columns, registers = columns / 2;
  std::vector<Sum> left(kSize * depth), right(columns * depth);
  for (int i = 0; i < kSize * depth; i++) left[i] = value(a, i);
  for (int i = 0; i < columns * depth; i++) right[i] = value(b, i);
  for (unsigned t = 0; t < 128; t++) {
    const Wgmma& mine = static_cast<Arguments*>(slots[t])->product;
    ThreadState& state = threads[first + t];
    auto pending = std::find_if(state.pending.begin(), state.pending.end(), [&](auto& p) { return p.d == mine.d; });
    if (pending == state.pending.end()) {
      pending = state.pending.insert(state.pending.end(), Pending{mine.d, 0, std::vector<uint32_t>(registers)});
      memcpy(pending->values.data(), mine.d, registers * sizeof(uint32_t));
    }
    pending->group = state.group;
    if (mine.a_registers != nullptr) {
      PendingA kept{mine.a_registers, state.group, {}};
      memcpy(kept.values, mine.a_registers, sizeof kept.values);
      state.pending_a.push_back(kept);
    }
    for (int i = 0; i < registers; i++) {
      unsigned row = t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + 2 * (t % 4) + i % 2;
      Sum sum = 0;
      if (mine.accumulate) memcpy(&sum, &pending->values[i], sizeof sum);
      for (int k = 0; k < depth; k++) sum += left[row * depth + k] * right[column * depth + k];
      memcpy(&pending->values[i], &sum, sizeof sum);
      memcpy(static_cast<uint32_t*>(mine.d) + i, &kNaN, sizeof kNaN);
    }
  }
}

void run(void** slots) {
  const Wgmma& w = static_cast<Arguments*>(slots[0])->product;
  void* code = static_cast<Arguments*>(slots[0])->code;
  unsigned first = running->thread & ~127u;
  for (int i = 1; i < 128; i++) {
    const Wgmma& other = static_cast<Arguments*>(slots[i])->product;
    if (other.a != w.a || other.b != w.b || other.accumulate != w.accumulate || other.columns != w.columns ||
        (other.a_registers == nullptr) != (w.a_registers == nullptr)) {
      fail("wgmma: threads 0 and %d of the warpgroup gave different operands", i);
    }
  }
  Operation operation{first, threads[first].group, 15, {}};
  unsigned bytes = w.element == Element::kS8 ? 1 : 2;
  const std::vector<uint8_t> a =
      w.a_registers != nullptr ? from_registers(slots) : operand(w.a, bytes, w.transposed_a, kSize, operation, code);
  const std::vector<uint8_t> b = operand(w.b, bytes, w.transposed_b, w.columns, operation, code);
  operations.push_back(std::move(operation));
  if (w.element == Element::kS8) {
    multiply<int>(slots, first, a, b, 32, [](auto& from, int i) { return static_cast<int8_t>(from[i]); });
    return;
  }
  multiply<float>(slots, first, a, b, 16, [&](auto& from, int i) {
    return widened(w.element, static_cast<uint16_t>(from[2 * i] | from[2 * i + 1] << 8));
  });
}

struct Wait {
  unsigned done;
};

void end_reads(void** slots, unsigned) {  // .aligned: for the whole warp
  unsigned first = running->thread & ~127u, warp = running->thread / 32 % 4;
  unsigned done = static_cast<Wait*>(slots[running->thread % 32])->done;
  for (Operation& o : operations) {
    if (o.first != first || o.group >= done || !(o.warps >> warp & 1)) continue;
    for (const Chunk& c : o.chunks) {
      if (memcmp(shared_pointer(c.address, 16, 16, "wgmma", nullptr), c.data, 16) != 0) {
        fail("shared memory at 0x%x changed while a wgmma that reads it was in flight", c.address);
      }
    }
    o.warps &= ~(1u << warp);
  }
  std::erase_if(operations, [](const Operation& o) { return o.warps == 0; });
}
}  // namespace

void wgmma_fence() {
  collective("wgmma.fence", ~0u, nullptr, nullptr, false);
  ThreadState& mine = threads[running->thread];
  mine.fenced = true;
  mine.fences++;
}

void wgmma(const Wgmma& product) {
  Arguments arguments{product, __builtin_return_address(0)};
  ThreadState& mine = threads[running->thread];
  // Of registers that are under way already no fence is needed: their products have an order of their own.
  const auto is_fenced = [&](const void* registers) {
    const bool busy = std::any_of(mine.pending.begin(), mine.pending.end(), [&](auto& p) { return p.d == registers; });
    const auto waited = mine.last_wait.find(registers);
    return busy || (mine.fenced && (waited == mine.last_wait.end() || waited->second < mine.fences));
  };
  if (!is_fenced(product.d)) {
    fail("wgmma without wgmma.fence since the accumulators were last waited for%s",
         source_line(arguments.code).c_str());
  }
  if (product.a_registers != nullptr && !is_fenced(product.a_registers)) {
    fail("wgmma without wgmma.fence since registers of its operand were last waited for%s",
         source_line(arguments.code).c_str());
  }
  if (product.columns < 8 || product.columns > kMaxColumns || product.columns % 8 != 0) {
    fail("wgmma: there is no form with %d columns", product.columns);
  }
  warpgroup_collective("wgmma.mma_async", running->thread & ~127u, &arguments, run);
}

void wgmma_commit() {
  collective("wgmma.commit_group", ~0u, nullptr, nullptr, false);
  threads[running->thread].group++;
}

void wgmma_wait(int groups_left) {
  ThreadState& mine = threads[running->thread];
  Wait wait{mine.group - std::min(mine.group, static_cast<unsigned>(groups_left))};
  collective("wgmma.wait_group", ~0u, &wait, end_reads, false);
  tensor_core_has_done(running->thread / 32, wait.done);
  for (Pending& p : mine.pending) {
    if (p.group >= wait.done) continue;
    for (size_t i = 0; i < p.values.size(); i++) {
      if (memcmp(static_cast<uint32_t*>(p.d) + i, &kNaN, sizeof kNaN) != 0) {
        fail("accumulator %zu was written while a wgmma in flight held it", i);
      }
    }
    memcpy(p.d, p.values.data(), p.values.size() * sizeof(uint32_t));
    mine.last_wait[p.d] = mine.fences;
  }
  for (const PendingA& p : mine.pending_a) {
    if (p.group >= wait.done) continue;
    if (memcmp(p.a, p.values, sizeof p.values) != 0) {
      fail("registers of an operand were written while a wgmma in flight read them");
    }
    mine.last_wait[p.a] = mine.fences;
  }
  std::erase_if(mine.pending, [&](const Pending& p) { return p.group < wait.done; });
  std::erase_if(mine.pending_a, [&](const PendingA& p) { return p.group < wait.done; });
  if (mine.pending.empty()) mine.fenced = false;
}

void products_of_cluster() {
  threads.assign(fibers.size(), {});
  operations.clear();
}

void products_of_exit() {
  if (!threads[running->thread].pending.empty()) fail("thread exits with wgmma that it has not waited for");
}

bool holds_accumulator(uintptr_t address, size_t bytes) {
  for (const Pending& p : threads[running->thread].pending) {
    uintptr_t low = reinterpret_cast<uintptr_t>(p.d);
    if (address + bytes > low && address < low + p.values.size() * sizeof(uint32_t)) return true;
  }
  return false;
}
}  // namespace emu
