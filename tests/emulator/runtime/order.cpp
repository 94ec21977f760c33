// Order: a happens-before relation over single bytes.
//
// Vector clocks (Flanagan and Freund, "FastTrack", 2009): a thread's clock holds the latest time of every other thread
// that is ordered before it. A barrier joins the clocks of all its threads; __syncwarp those of its lanes; an mbarrier
// those of the threads that arrive, and of copies, with those of the threads that wait; the barrier of a cluster those
// of all who arrive with those of who waits, or, of a relaxed arrival, that the thread has started (time 1, before its
// first access); shuffles join none. Threads are those of all blocks of the cluster that
// runs. After them a clock has an entry for each block's copy engine, and one for each warp's tensor core: how many of
// its groups of wgmma have been waited for.
#include "order.h"

#include <algorithm>

namespace emu {
namespace {
constexpr uint32_t kStarted = 1;           // a time before everything that a thread does
constexpr uint16_t kTensorCores = 0x8000;  // plus the first thread of a warpgroup: a reader

std::vector<Clock> clocks;
std::vector<std::vector<uint32_t>> fences;  // of each thread: when it made its writes visible to the other proxy
std::vector<uint32_t> copies_landed;        // each copy engine's time
bool racing = false;

uint16_t copy_engine(unsigned rank) {
  return static_cast<uint16_t>(fibers.size() + rank);
}

size_t tensor_core(unsigned warp) {
  return fibers.size() + blocks.size() + warp;
}

size_t clock_size() {
  return tensor_core((fibers.size() + 31) / 32);
}

bool ordered(uint16_t other, uint32_t time, const Access& access) {
  if (other == kNobody || other == access.agent) return true;
  if (!(other & kTensorCores)) return time <= access.seen[other];
  size_t core = tensor_core((other & ~kTensorCores) / 32);
  return *std::min_element(&access.seen[core], &access.seen[core] + 4) >= time;  // each warp reads the operands
}

std::string name_of(uint16_t agent) {
  if (agent & kTensorCores) {
    unsigned first = agent & ~kTensorCores;
    return "a wgmma of warp " + std::to_string(first % block_fibers / 32) + " and the next 3" +
           of_rank(first / block_fibers);
  }
  return agent >= fibers.size() ? "a TMA load" : name_of_thread(agent);
}

void check_byte(Byte& byte, const Access& access, const Extent& extent, size_t offset) {
  const char* what = access.write ? "write to" : "read of";
  bool both_atomic = access.is_atomic && byte.by_atomic;
  auto unordered = [&](uint16_t other) {
    fail("race: %s %s+%zu, unordered with %s%s", what, extent.name.c_str(), offset, name_of(other).c_str(),
         source_line(access.code).c_str());
  };
  if (byte.in_flight) {
    fail("%s %s+%zu while an asynchronous copy into it is in flight%s", what, extent.name.c_str(), offset,
         source_line(access.code).c_str());
  }
  if (access.is_shared && !access.write && !byte.written) {
    fail("read of uninitialised %s+%zu%s", extent.name.c_str(), offset, source_line(access.code).c_str());
  }
  auto of_another_block = [&](const char* did, uint32_t block) {
    fail("race: %s %s+%zu, which block %u %s%s", what, extent.name.c_str(), offset, block, did,
         source_line(access.code).c_str());
  };
  uint32_t block = access.is_shared ? 0 : blocks[running->rank].number;  // shared memory is new in each block
  auto is_elsewhere = [&](uint32_t other) { return other / blocks.size() != block / blocks.size(); };
  if (byte.written && !both_atomic) {
    if (is_elsewhere(byte.write_block)) of_another_block("wrote", byte.write_block);
    if (!ordered(byte.writer, byte.write_time, access)) unordered(byte.writer);
  }
  if (access.write) {
    for (int i = 0; i < 2; i++) {
      if (byte.reader[i] == kNobody) continue;
      if (is_elsewhere(byte.read_block)) of_another_block("read", byte.read_block);
      if (!ordered(byte.reader[i], byte.read_time[i], access)) unordered(byte.reader[i]);
    }
    byte = Byte{};
    byte.writer = access.agent;
    byte.write_time = access.time;
    byte.write_block = block;
    byte.written = true;
    byte.by_atomic = access.is_atomic;
    return;
  }
  if (is_elsewhere(byte.read_block)) byte.reader[0] = byte.reader[1] = kNobody;
  if (byte.reader[0] != kNobody && byte.reader[0] / 32 != access.agent / 32) {
    byte.reader[1] = byte.reader[0];
    byte.read_time[1] = byte.read_time[0];
  }
  byte.reader[0] = access.agent;
  byte.read_time[0] = access.time;
  byte.read_block = block;
}

}  // namespace

Access by_this_thread(bool write, bool is_atomic, bool is_shared, void* code) {
  const Clock& seen = clocks[running->thread];
  return {write, is_atomic, is_shared, static_cast<uint16_t>(running->thread), seen[running->thread], seen, code};
}

void check_bytes(Extent& extent, uintptr_t a, size_t n, const Access& access) {
  for (size_t i = a - extent.low; i < a - extent.low + n; i++) check_byte(extent.bytes[i], access, extent, i);
}

void check_operand(Extent& extent, uintptr_t a, size_t n, unsigned first, uint32_t group, const Clock& seen,
                   void* code) {
  check_bytes(extent, a, n, {false, false, true, static_cast<uint16_t>(kTensorCores + first), group, seen, code});
  for (size_t i = a - extent.low; i < a - extent.low + n; i++) {
    uint16_t writer = extent.bytes[i].writer;
    if (writer < fibers.size() && !fenced(writer, extent.bytes[i].write_time, seen[writer])) {
      fail("wgmma reads %s+%zu, written by thread %u without fence.proxy.async in between%s", extent.name.c_str(), i,
           writer, source_line(code).c_str());
    }
  }
}

void mark_in_flight(Extent& extent, uintptr_t a, size_t n) {
  for (size_t i = a - extent.low; i < a - extent.low + n; i++) extent.bytes[i].in_flight = true;
}

void mark_landed(Extent& extent, uintptr_t a, size_t n, unsigned rank, bool by_engine) {
  for (size_t i = a - extent.low; i < a - extent.low + n; i++) {
    Byte& byte = extent.bytes[i];
    byte.in_flight = false;
    byte.writer = by_engine ? copy_engine(rank) : static_cast<uint16_t>(running->thread);
    byte.write_time = by_engine ? copies_landed[rank] : clocks[running->thread][running->thread];
  }
}

void order_of_launch(bool checks) {
  racing = checks;
}

void order_of_cluster() {
  if (!racing) return;
  clocks.assign(fibers.size(), Clock(clock_size(), 0));
  fences.assign(fibers.size(), {});
  copies_landed.assign(blocks.size(), 0);
  for (size_t t = 0; t < fibers.size(); t++) clocks[t][t] = kStarted + 1;
}

bool checks_order() {
  return racing;
}

Clock seen_by_all(unsigned first, unsigned count) {
  Clock seen = clocks[first];
  for (unsigned t = first + 1; t < first + count; t++) {
    for (size_t i = 0; i < seen.size(); i++) seen[i] = std::min(seen[i], clocks[t][i]);
  }
  return seen;
}

void fence_proxy_async() {
  if (!racing) return;
  unsigned thread = running->thread;
  fences[thread].push_back(clocks[thread][thread]++);  // what it writes from now on is later
}

bool fenced(unsigned thread, uint32_t written, uint32_t seen) {
  auto fence = std::lower_bound(fences[thread].begin(), fences[thread].end(), written);
  return fence != fences[thread].end() && *fence <= seen;
}

uint32_t now(unsigned thread) {
  return racing ? clocks[thread][thread] : 0;
}

bool some_thread_saw(unsigned rank, unsigned thread, uint32_t time) {
  auto first = clocks.begin() + rank * block_fibers;
  return std::any_of(first, first + block_fibers, [&](const Clock& clock) { return clock[thread] >= time; });
}

bool some_thread_started(unsigned rank) {
  auto first = clocks[running->thread].begin() + rank * block_fibers;
  return std::any_of(first, first + block_fibers, [](uint32_t seen) { return seen > 0; });
}

uint32_t last_seen(unsigned thread) {
  return clocks[running->thread][thread];
}

void copy_has_landed(Clock& clock, unsigned rank) {
  if (!racing) return;
  if (clock.empty()) clock.assign(clock_size(), 0);
  clock[copy_engine(rank)] = ++copies_landed[rank];
}

void tensor_core_has_done(unsigned warp, uint32_t groups) {
  if (racing) clocks[running->thread][tensor_core(warp)] = groups;
}

void release(Clock& clock, unsigned thread) {
  if (!racing) return;
  if (clock.empty()) clock.assign(clock_size(), 0);
  for (size_t i = 0; i < clock.size(); i++) clock[i] = std::max(clock[i], clocks[thread][i]);
  clocks[thread][thread]++;
}

void release_start(Clock& clock, unsigned thread) {
  if (!racing) return;
  if (clock.empty()) clock.assign(clock_size(), 0);
  clock[thread] = std::max(clock[thread], kStarted);
}

void acquire(const Clock& clock, unsigned thread) {
  if (!racing || clock.empty()) return;
  for (size_t i = 0; i < clock.size(); i++) clocks[thread][i] = std::max(clocks[thread][i], clock[i]);
}
}  // namespace emu
