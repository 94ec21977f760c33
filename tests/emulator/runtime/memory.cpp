// Memory: the block's shared memory, the extents of the caller's buffers, and a happens-before relation over single
// bytes.
//
// Vector clocks (Flanagan and Freund, "FastTrack", 2009): a thread's clock holds the latest time of every other thread
// that is ordered before it. A barrier joins the clocks of all its threads; __syncwarp those of its lanes; shuffles
// join none.
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
constexpr size_t kRedZone = 32;  // between two shared arrays

// What is known of one byte. Two readers of different warps stand for all: a write is held against both.
struct Byte {
  uint32_t write_time = 0, read_time[2] = {0, 0}, write_block = 0, read_block = 0;
  uint16_t writer = kNobody, reader[2] = {kNobody, kNobody};
  bool written = false, by_atomic = false;
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
bool hooks = false, racing = false;

uintptr_t number(const void* p) {
  return reinterpret_cast<uintptr_t>(p);
}

bool ordered(uint16_t thread, uint32_t time) {  // before what the running thread does now
  return thread == kNobody || thread == running->thread || time <= clocks[running->thread][thread];
}

std::string source_line(void* code) {
  Dl_info info;
  if (code == nullptr || dladdr(code, &info) == 0 || info.dli_fname == nullptr) return "";
  char command[1024], line[512] = "";
  snprintf(command, sizeof command, "addr2line -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
           static_cast<size_t>(number(code) - number(info.dli_fbase) - 1));
  if (FILE* pipe = popen(command, "r")) {
    if (fgets(line, sizeof line, pipe) == nullptr) line[0] = 0;
    pclose(pipe);
  }
  line[strcspn(line, "\n")] = 0;
  return std::string(" at ") + line;
}

void check_byte(Byte& byte, bool write, bool is_atomic, bool is_shared, const Extent& extent, size_t offset,
                void* code) {
  const char* what = write ? "write to" : "read of";
  bool both_atomic = is_atomic && byte.by_atomic;
  auto unordered = [&](uint16_t other) {
    fail("race: %s %s+%zu, unordered with thread %u [warp %u lane %u]%s", what, extent.name.c_str(), offset, other,
         other / 32, other % 32, source_line(code).c_str());
  };
  if (is_shared && !write && !byte.written) {
    fail("read of uninitialised %s+%zu%s", extent.name.c_str(), offset, source_line(code).c_str());
  }
  auto of_another_block = [&](const char* did, uint32_t block) {
    fail("race: %s %s+%zu, which block %u %s%s", what, extent.name.c_str(), offset, block, did,
         source_line(code).c_str());
  };
  uint32_t block = is_shared ? 0 : block_number;  // shared memory is new in each block
  if (byte.written && !both_atomic) {
    if (byte.write_block != block) of_another_block("wrote", byte.write_block);
    if (!ordered(byte.writer, byte.write_time)) unordered(byte.writer);
  }
  uint16_t thread = static_cast<uint16_t>(running->thread);
  uint32_t now = clocks[thread][thread];
  if (write) {
    for (int i = 0; i < 2; i++) {
      if (byte.reader[i] == kNobody) continue;
      if (byte.read_block != block) of_another_block("read", byte.read_block);
      if (!ordered(byte.reader[i], byte.read_time[i])) unordered(byte.reader[i]);
    }
    byte = Byte{};
    byte.writer = thread;
    byte.write_time = now;
    byte.write_block = block;
    byte.written = true;
    byte.by_atomic = is_atomic;
    return;
  }
  if (byte.read_block != block) byte.reader[0] = byte.reader[1] = kNobody;
  if (byte.reader[0] != kNobody && byte.reader[0] / 32 != thread / 32) {
    byte.reader[1] = byte.reader[0];
    byte.read_time[1] = byte.read_time[0];
  }
  byte.reader[0] = thread;
  byte.read_time[0] = now;
  byte.read_block = block;
}

void check_bytes(Extent& extent, uintptr_t a, size_t n, bool write, bool is_atomic, bool is_shared, void* code) {
  if (!racing) return;
  for (size_t i = a - extent.low; i < a - extent.low + n; i++) {
    check_byte(extent.bytes[i], write, is_atomic, is_shared, extent, i, code);
  }
}
}  // namespace

void memory_of_launch() {
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
  clocks.assign(fibers.size(), Clock(fibers.size(), 0));
  for (size_t t = 0; t < fibers.size(); t++) clocks[t][t] = 1;
}

void* shared_array(const void* key, size_t bytes, size_t align) {
  for (const Shared& s : shared) {
    if (s.key == key) return reinterpret_cast<void*>(s.extent.low);
  }
  size_t start = (arena_used + align - 1) / align * align;
  arena_used = start + bytes + kRedZone;
  if (arena_used > kArenaBytes) fail("%zu bytes of shared memory exceed what the emulator has", arena_used);
  uint8_t* p = arena + start;
  __asan_unpoison_memory_region(p, bytes);
  if (config.poison) memset(p, 0xff, bytes);
  shared.push_back({key, {number(p), number(p) + bytes, "shared memory", true, std::vector<Byte>(racing ? bytes : 0)}});
  return p;
}

void release(Clock& clock, unsigned thread) {
  if (!racing) return;
  if (clock.empty()) clock.assign(fibers.size(), 0);
  for (size_t i = 0; i < clock.size(); i++) clock[i] = std::max(clock[i], clocks[thread][i]);
  clocks[thread][thread]++;
}

void acquire(const Clock& clock, unsigned thread) {
  if (!racing || clock.empty()) return;
  for (size_t i = 0; i < clock.size(); i++) clocks[thread][i] = std::max(clocks[thread][i], clock[i]);
}

void access(const void* p, size_t n, bool write, bool is_atomic, void* code) {
  uintptr_t a = number(p);
  if (running == nullptr || exchanging || on_a_stack(a)) return;
  const char* kind = write ? "write" : "read";
  if (a - number(arena) < kArenaBytes) {
    for (Shared& s : shared) {
      if (s.extent.holds(a, n)) return check_bytes(s.extent, a, n, write, is_atomic, true, code);
    }
    fail("out of bounds: %s of %zu bytes between the arrays of shared memory%s", kind, n, source_line(code).c_str());
  }
  if (buffers.empty()) return;  // a caller that declared none is not held to any
  for (Extent& b : buffers) {
    if (!b.holds(a, n)) continue;
    if (write && !b.writable) {
      fail("write to the read-only buffer %s+%zu%s", b.name.c_str(), a - b.low, source_line(code).c_str());
    }
    return check_bytes(b, a, n, write, is_atomic, false, code);
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
