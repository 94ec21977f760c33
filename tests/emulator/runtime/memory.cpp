// Memory: the block's shared memory, the extents of the caller's buffers, and a happens-before relation over single
// bytes.
//
// Vector clocks (Flanagan and Freund, "FastTrack", 2009): a thread's clock holds the latest time of every other thread
// that is ordered before it. A barrier joins the clocks of all its threads; __syncwarp those of its lanes; shuffles
// join none. After the threads a clock has an entry for the copy engine, and one for each warp's tensor core: how many
// of its groups of wgmma have been waited for.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "state.h"

namespace emu {
namespace {
constexpr uint16_t kNobody = 0xffff;
constexpr uint16_t kTensorCores = 0x8000;  // plus the first thread of a warpgroup: a reader
constexpr size_t kRedZone = 32;            // between two shared arrays

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

struct Shared {
  const void* key;
  Extent extent;
};

uint8_t* arena = nullptr;
size_t arena_used = 0;
std::vector<Shared> shared;
std::vector<Extent> buffers;
std::vector<std::pair<uintptr_t, uintptr_t>> modules;  // globals and literals of the kernels' own module
std::vector<Clock> clocks;
std::vector<std::vector<uint32_t>> fences;  // of each thread: when it made its writes visible to the other proxy
uint32_t copies_landed = 0;                 // the copy engine's time
bool hooks = false, racing = false;
const char dynamic_key = 0;
size_t dynamic_bytes = 0;

uintptr_t number(const void* p) {
  return reinterpret_cast<uintptr_t>(p);
}

uint16_t copy_engine() {
  return static_cast<uint16_t>(fibers.size());
}

size_t clock_size() {
  return fibers.size() + 1 + (fibers.size() + 31) / 32;
}

bool ordered(uint16_t other, uint32_t time, const Access& access) {
  if (other == kNobody || other == access.agent) return true;
  if (!(other & kTensorCores)) return time <= access.seen[other];
  size_t core = copy_engine() + 1 + (other & ~kTensorCores) / 32;
  return *std::min_element(&access.seen[core], &access.seen[core] + 4) >= time;  // each warp reads the operands
}

Access by_this_thread(bool write, bool is_atomic, bool is_shared, void* code) {
  const Clock& seen = clocks[running->thread];
  return {write, is_atomic, is_shared, static_cast<uint16_t>(running->thread), seen[running->thread], seen, code};
}

std::string name_of(uint16_t agent) {
  if (agent & kTensorCores)
    return "a wgmma of warp " + std::to_string((agent & ~kTensorCores) / 32) + " and the next 3";
  if (agent == copy_engine()) return "a TMA load";
  return "thread " + std::to_string(agent) + " [warp " + std::to_string(agent / 32) + " lane " +
         std::to_string(agent % 32) + "]";
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
  uint32_t block = access.is_shared ? 0 : block_number;  // shared memory is new in each block
  if (byte.written && !both_atomic) {
    if (byte.write_block != block) of_another_block("wrote", byte.write_block);
    if (!ordered(byte.writer, byte.write_time, access)) unordered(byte.writer);
  }
  if (access.write) {
    for (int i = 0; i < 2; i++) {
      if (byte.reader[i] == kNobody) continue;
      if (byte.read_block != block) of_another_block("read", byte.read_block);
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
  if (byte.read_block != block) byte.reader[0] = byte.reader[1] = kNobody;
  if (byte.reader[0] != kNobody && byte.reader[0] / 32 != access.agent / 32) {
    byte.reader[1] = byte.reader[0];
    byte.read_time[1] = byte.read_time[0];
  }
  byte.reader[0] = access.agent;
  byte.read_time[0] = access.time;
  byte.read_block = block;
}

void check_bytes(Extent& extent, uintptr_t a, size_t n, const Access& access) {
  for (size_t i = a - extent.low; i < a - extent.low + n; i++) check_byte(extent.bytes[i], access, extent, i);
}

// The array that holds these bytes of shared memory; fails where none does.
Extent& shared_extent(uint32_t address, size_t n, const char* what, void* code) {
  uintptr_t a = number(arena) + address;
  Extent* nearest = nullptr;
  for (Shared& s : shared) {
    if (s.extent.holds(a, n)) return s.extent;
    if (nearest == nullptr || (s.extent.low <= a && s.extent.low > nearest->low)) nearest = &s.extent;
  }
  if (nearest == nullptr) fail("out of bounds: %s of %zu bytes, but the block has no shared memory", what, n);
  fail("out of bounds: %s of %zu bytes at %s%+ld, an array of %zu bytes%s", what, n, nearest->name.c_str(),
       static_cast<long>(a - nearest->low), static_cast<size_t>(nearest->high - nearest->low),
       source_line(code).c_str());
}
}  // namespace

// " at a.cuh:1, b.cu:2": the line of the access, and those of the functions that it was inlined into.
std::string source_line(void* code) {
  Dl_info info;
  if (code == nullptr || dladdr(code, &info) == 0 || info.dli_fname == nullptr) return "";
  char command[1024], line[512];
  snprintf(command, sizeof command, "addr2line -s -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
           static_cast<size_t>(number(code) - number(info.dli_fbase) - 1));
  std::string lines;
  if (FILE* pipe = popen(command, "r")) {
    while (fgets(line, sizeof line, pipe) != nullptr) {
      line[strcspn(line, " \n")] = 0;
      lines += (lines.empty() ? " at " : ", ") + std::string(line);
    }
    pclose(pipe);
  }
  return lines;
}

void memory_of_launch(size_t shared_bytes) {
  dynamic_bytes = shared_bytes;
  if (arena == nullptr) {
    void* p = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) abort();
    arena = static_cast<uint8_t*>(p);
  }
  racing = hooks && config.race;
  for (Extent& buffer : buffers) std::fill(buffer.bytes.begin(), buffer.bytes.end(), Byte{});
}

void memory_of_block() {
  __asan_poison_memory_region(arena, kArenaBytes);
  shared.clear();
  arena_used = kRedZone;
  if (!racing) return;
  clocks.assign(fibers.size(), Clock(clock_size(), 0));
  fences.assign(fibers.size(), {});
  copies_landed = 0;
  for (size_t t = 0; t < fibers.size(); t++) clocks[t][t] = 1;
}

namespace {
void* new_array(const void* key, size_t start, size_t bytes, const char* name) {
  arena_used = start + bytes + kRedZone;
  if (arena_used > kArenaBytes) fail("%zu bytes of shared memory exceed what the emulator has", arena_used);
  uint8_t* p = arena + start;
  __asan_unpoison_memory_region(p, bytes);
  if (config.poison) memset(p, 0xff, bytes);
  shared.push_back({key, {number(p), number(p) + bytes, name, true, std::vector<Byte>(racing ? bytes : 0)}});
  return p;
}

void* found_array(const void* key) {
  for (const Shared& s : shared) {
    if (s.key == key) return reinterpret_cast<void*>(s.extent.low);
  }
  return nullptr;
}
}  // namespace

void* shared_array(const void* key, size_t bytes, size_t align) {
  if (void* found = found_array(key)) return found;
  return new_array(key, (arena_used + align - 1) / align * align, bytes, "shared memory");
}

void* dynamic_shared(size_t align) {
  if (void* found = found_array(&dynamic_key)) return found;
  size_t start = (arena_used + align - 1) / align * align;
  if (start % (2 * align) == 0) start += align;
  return new_array(&dynamic_key, start, dynamic_bytes, "dynamic shared memory");
}

uint32_t shared_address(const void* p) {
  if (number(p) - number(arena) >= kArenaBytes) fail("%p is no address of shared memory", p);
  return static_cast<uint32_t>(number(p) - number(arena));
}

uint8_t* shared_pointer(uint32_t address, size_t n, size_t align, const char* what, void* code) {
  shared_extent(address, n, what, code);
  if (address % align != 0) {
    fail("%s: address 0x%x of shared memory is no multiple of %zu%s", what, address, align, source_line(code).c_str());
  }
  return arena + address;
}

void access_shared(uint32_t address, size_t n, bool write, void* code) {
  if (!racing) return;
  Extent& extent = shared_extent(address, n, write ? "write" : "read", code);
  check_bytes(extent, number(arena) + address, n, by_this_thread(write, false, true, code));
}

void start_copy(uint32_t address, size_t n, void* code) {
  access_shared(address, n, true, code);
  if (config.poison) memset(arena + address, 0xff, n);
  if (!racing) return;
  Extent& extent = shared_extent(address, n, "copy", code);
  Byte* bytes = &extent.bytes[number(arena) + address - extent.low];
  for (size_t i = 0; i < n; i++) bytes[i].in_flight = true;
}

void land_copy(uint32_t address, const uint8_t* data, size_t n, bool by_engine) {
  memcpy(arena + address, data, n);
  if (!racing) return;
  Extent& extent = shared_extent(address, n, "copy", nullptr);
  Byte* bytes = &extent.bytes[number(arena) + address - extent.low];
  for (size_t i = 0; i < n; i++) {
    bytes[i].in_flight = false;
    bytes[i].writer = by_engine ? copy_engine() : static_cast<uint16_t>(running->thread);
    bytes[i].write_time = by_engine ? copies_landed : clocks[running->thread][running->thread];
  }
}

void read_by_tensor_cores(uint32_t address, size_t n, unsigned first, uint32_t group, void* code) {
  if (!racing) return;
  Clock seen = clocks[first];  // by every thread of the warpgroup
  for (unsigned t = first + 1; t < first + 128; t++) {
    for (size_t i = 0; i < seen.size(); i++) seen[i] = std::min(seen[i], clocks[t][i]);
  }
  Extent& extent = shared_extent(address, n, "wgmma", code);
  size_t start = number(arena) + address - extent.low;
  const Access access{false, false, true, static_cast<uint16_t>(kTensorCores + first), group, seen, code};
  for (size_t i = start; i < start + n; i++) {
    check_byte(extent.bytes[i], access, extent, i);
    uint16_t writer = extent.bytes[i].writer;
    if (writer < fibers.size() && !fenced(writer, extent.bytes[i].write_time, seen[writer])) {
      fail("wgmma reads %s+%zu, written by thread %u without fence.proxy.async in between%s", extent.name.c_str(), i,
           writer, source_line(code).c_str());
    }
  }
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

uint32_t last_seen(unsigned thread) {
  return racing ? clocks[running->thread][thread] : 0;
}

bool checks_order() {
  return racing;
}

void copy_has_landed(Clock& clock) {
  if (!racing) return;
  if (clock.empty()) clock.assign(clock_size(), 0);
  clock[copy_engine()] = ++copies_landed;
}

void tensor_core_has_done(unsigned warp, uint32_t groups) {
  if (racing) clocks[running->thread][copy_engine() + 1 + warp] = groups;
}

void release(Clock& clock, unsigned thread) {
  if (!racing) return;
  if (clock.empty()) clock.assign(clock_size(), 0);
  for (size_t i = 0; i < clock.size(); i++) clock[i] = std::max(clock[i], clocks[thread][i]);
  clocks[thread][thread]++;
}

void acquire(const Clock& clock, unsigned thread) {
  if (!racing || clock.empty()) return;
  for (size_t i = 0; i < clock.size(); i++) clocks[thread][i] = std::max(clocks[thread][i], clock[i]);
}

void access(const void* p, size_t n, bool write, bool is_atomic, void* code) {
  uintptr_t a = number(p);
  if (running == nullptr || exchanging) return;
  const char* kind = write ? "write" : "read";
  if (on_a_stack(a)) {
    if (holds_accumulator(a, n)) {
      fail("%s of an accumulator that a wgmma in flight holds%s", kind, source_line(code).c_str());
    }
    return;
  }
  if (a - number(arena) < kArenaBytes) {
    for (Shared& s : shared) {
      if (!s.extent.holds(a, n)) continue;
      if (racing) check_bytes(s.extent, a, n, by_this_thread(write, is_atomic, true, code));
      return;
    }
    fail("out of bounds: %s of %zu bytes between the arrays of shared memory%s", kind, n, source_line(code).c_str());
  }
  if (buffers.empty()) return;  // a caller that declared none is not held to any
  for (Extent& b : buffers) {
    if (!b.holds(a, n)) continue;
    if (write && !b.writable) {
      fail("write to the read-only buffer %s+%zu%s", b.name.c_str(), a - b.low, source_line(code).c_str());
    }
    if (racing) check_bytes(b, a, n, by_this_thread(write, is_atomic, false, code));
    return;
  }
  for (const auto& [low, high] : modules) {
    if (a >= low && a + n <= high) return;
  }
  const Extent* nearest = &buffers[0];
  auto distance = [a](const Extent& b) { return a >= b.high ? a - b.high : b.low - a; };
  for (const Extent& b : buffers) {
    if (distance(b) < distance(*nearest)) nearest = &b;
  }
  fail("out of bounds: %s of %zu bytes at %s%+ld, a buffer of %zu bytes%s", kind, n, nearest->name.c_str(),
       static_cast<long>(a - nearest->low), static_cast<size_t>(nearest->high - nearest->low),
       source_line(code).c_str());
}

void add_buffer(const void* p, size_t n, const char* name, bool writable) {
  buffers.push_back({number(p), number(p) + n, name, writable, std::vector<Byte>(hooks ? n : 0)});
}

void clear_buffers() {
  buffers.clear();
}

bool has_hooks() {
  return hooks;
}

void hook_atomic(const void* p, size_t n) {
  access(p, n, true, true, __builtin_return_address(0));
}

void hooks_present(const void* address) {
  hooks = true;
  Dl_info info;
  if (dladdr(address, &info) == 0 || !modules.empty()) return;
  auto segments = [](dl_phdr_info* object, size_t, void* base) -> int {
    if (object->dlpi_addr != number(base)) return 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
      const auto& segment = object->dlpi_phdr[i];
      uintptr_t low = object->dlpi_addr + segment.p_vaddr;
      if (segment.p_type == PT_LOAD) modules.push_back({low, low + segment.p_memsz});
    }
    return 1;
  };
  dl_iterate_phdr(segments, info.dli_fbase);
}
}  // namespace emu
