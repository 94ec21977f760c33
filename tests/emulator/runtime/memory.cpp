// Memory: the shared memory of the blocks that run, the extents of the caller's buffers, and where each access lies.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "order.h"

namespace emu {
namespace {
constexpr size_t kRedZone = 32;  // between two shared arrays

struct Shared {
  const void* key;
  std::vector<Extent> extents;  // at the same place in each block
};

uint8_t* arenas = nullptr;               // of the blocks, one after another
size_t arena_used = 0, shared_used = 0;  // of each: with the gaps, and without
std::vector<Shared> shared;
std::vector<Extent> buffers;
std::vector<std::pair<uintptr_t, uintptr_t>> modules;  // globals and literals of the kernels' own module
bool hooks = false;
const char dynamic_key = 0;
size_t dynamic_bytes = 0;

uintptr_t number(const void* p) {
  return reinterpret_cast<uintptr_t>(p);
}

uint8_t* arena_of(unsigned rank) {
  return arenas + rank * kArenaBytes;
}

// The array of a block that holds these bytes of its shared memory; fails where none does.
Extent& shared_extent(unsigned rank, uint32_t address, size_t n, const char* what, void* code) {
  uintptr_t a = number(arena_of(rank)) + address;
  Extent* nearest = nullptr;
  for (Shared& s : shared) {
    Extent& extent = s.extents[rank];
    if (extent.holds(a, n)) return extent;
    if (nearest == nullptr || (extent.low <= a && extent.low > nearest->low)) nearest = &extent;
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
  if (arenas == nullptr) {
    void* p = mmap(nullptr, kArenaBytes * kMaxCluster, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) abort();
    arenas = static_cast<uint8_t*>(p);
  }
  order_of_launch(hooks && config.race);
  for (Extent& buffer : buffers) std::fill(buffer.bytes.begin(), buffer.bytes.end(), Byte{});
}

void memory_of_cluster() {
  __asan_poison_memory_region(arenas, kArenaBytes * blocks.size());
  shared.clear();
  arena_used = kRedZone;
  shared_used = 0;
  order_of_cluster();
}

namespace {
void* new_array(const void* key, size_t start, size_t bytes, const char* name) {
  arena_used = start + bytes + kRedZone;
  shared_used += bytes;
  if (shared_used > device.shared_bytes() || arena_used > kArenaBytes) {
    fail("%zu bytes of shared memory, and sm_%d has %zu for a block", shared_used, device.arch, device.shared_bytes());
  }
  Shared array{key, {}};
  for (unsigned rank = 0; rank < blocks.size(); rank++) {
    uint8_t* p = arena_of(rank) + start;
    __asan_unpoison_memory_region(p, bytes);
    if (config.poison) memset(p, 0xff, bytes);
    array.extents.push_back({number(p), number(p) + bytes, name, true, std::vector<Byte>(checks_order() ? bytes : 0)});
  }
  shared.push_back(std::move(array));
  return arena_of(running->rank) + start;
}

// A compiler may place an array so too: one that is accessed by wider elements than its own has to ask for it.
size_t aligned_no_better(size_t align) {
  size_t start = (arena_used + align - 1) / align * align;
  return start % (2 * align) == 0 ? start + align : start;
}

void* found_array(const void* key) {
  for (const Shared& s : shared) {
    if (s.key == key) return reinterpret_cast<void*>(s.extents[running->rank].low);
  }
  return nullptr;
}
}  // namespace

void* shared_array(const void* key, size_t bytes, size_t align) {
  if (void* found = found_array(key)) return found;
  return new_array(key, aligned_no_better(align), bytes, "shared memory");
}

void* dynamic_shared(size_t align) {
  if (void* found = found_array(&dynamic_key)) return found;
  return new_array(&dynamic_key, aligned_no_better(align), dynamic_bytes, "dynamic shared memory");
}

uint32_t shared_address(const void* p) {
  uintptr_t offset = number(p) - number(arena_of(running->rank));
  if (offset >= kArenaBytes) fail("%p is no address of shared memory", p);
  return static_cast<uint32_t>(offset);
}

uint8_t* shared_pointer(uint32_t address, size_t n, size_t align, const char* what, void* code) {
  shared_extent(running->rank, address, n, what, code);
  if (address % align != 0) {
    fail("%s: address 0x%x of shared memory is no multiple of %zu%s", what, address, align, source_line(code).c_str());
  }
  return arena_of(running->rank) + address;
}

void access_shared(uint32_t address, size_t n, bool write, void* code) {
  if (!checks_order()) return;
  Extent& extent = shared_extent(running->rank, address, n, write ? "write" : "read", code);
  check_bytes(extent, number(arena_of(running->rank)) + address, n, by_this_thread(write, false, true, code));
}

void write_shared_of(unsigned rank, uint32_t address, const void* data, size_t n, const char* what, void* code) {
  Extent& extent = shared_extent(rank, address, n, what, code);
  if (address % n != 0) fail("%s: 0x%x is no multiple of %zu%s", what, address, n, source_line(code).c_str());
  uint8_t* p = arena_of(rank) + address;
  if (checks_order()) check_bytes(extent, number(p), n, by_this_thread(true, false, true, code));
  memcpy(p, data, n);
}

void start_copy(uint32_t address, size_t n, void* code) {
  access_shared(address, n, true, code);
  uint8_t* p = arena_of(running->rank) + address;
  if (config.poison) memset(p, 0xff, n);
  if (checks_order()) mark_in_flight(shared_extent(running->rank, address, n, "copy", code), number(p), n);
}

void land_copy(unsigned rank, uint32_t address, const uint8_t* data, size_t n, bool by_engine) {
  uint8_t* p = arena_of(rank) + address;
  memcpy(p, data, n);
  if (checks_order()) mark_landed(shared_extent(rank, address, n, "copy", nullptr), number(p), n, rank, by_engine);
}

void read_by_tensor_cores(const std::vector<uint32_t>& addresses, size_t n, unsigned first, uint32_t group,
                          void* code) {
  if (!checks_order()) return;
  const Clock seen = seen_by_all(first, 128);
  const uintptr_t arena = number(arena_of(running->rank));
  for (uint32_t address : addresses) {
    Extent& extent = shared_extent(running->rank, address, n, "wgmma", code);
    check_operand(extent, arena + address, n, first, group, seen, code);
  }
}

namespace {
// "x+4": an address within what is known of memory.
std::string place(uintptr_t a) {
  char text[256];
  snprintf(text, sizeof text, "address 0x%zx", static_cast<size_t>(a));
  auto name = [&](const Extent& extent) {
    if (extent.holds(a, 1)) snprintf(text, sizeof text, "%s+%zu", extent.name.c_str(), a - extent.low);
  };
  for (const Shared& s : shared) {
    for (const Extent& extent : s.extents) name(extent);
  }
  for (const Extent& b : buffers) name(b);
  return text;
}

void check_alignment(uintptr_t a, size_t n, size_t align, void* code) {
  if (a % align == 0) return;
  fail("misaligned access of %zu bytes at %s, %zu modulo %zu%s", n, place(a).c_str(), a % align, align,
       source_line(code).c_str());
}
}  // namespace

void check_alignment(const void* p, size_t n) {
  check_alignment(number(p), n, n, __builtin_return_address(0));
}

void access(const void* p, size_t n, size_t align, bool write, bool is_atomic, void* code) {
  uintptr_t a = number(p);
  if (running == nullptr || exchanging) return;
  const char* kind = write ? "write" : "read";
  if (on_a_stack(a)) {
    if (holds_accumulator(a, n)) {
      fail("%s of an accumulator that a wgmma in flight holds%s", kind, source_line(code).c_str());
    }
    return;
  }
  check_alignment(a, n, align, code);
  if (a - number(arenas) < kArenaBytes * kMaxCluster) {
    for (Shared& s : shared) {
      Extent& extent = s.extents[running->rank];
      if (!extent.holds(a, n)) continue;
      if (checks_order()) check_bytes(extent, a, n, by_this_thread(write, is_atomic, true, code));
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
    if (checks_order()) check_bytes(b, a, n, by_this_thread(write, is_atomic, false, code));
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
  access(p, n, n, true, true, __builtin_return_address(0));
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
