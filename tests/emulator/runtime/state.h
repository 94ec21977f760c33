// What the parts of the runtime share. The runtime itself is never compiled with -fsanitize=thread: kernels may be.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#else
#define EMU_ASAN 0
#define __asan_poison_memory_region(p, n) (static_cast<void>(p), static_cast<void>(n))
#define __asan_unpoison_memory_region(p, n) (static_cast<void>(p), static_cast<void>(n))
#endif

namespace emu {

constexpr size_t kMaxThreads = 1024;
constexpr size_t kStackBytes = EMU_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t kArenaBytes = 256 << 10;

struct Config {
  uint64_t seed = 1;   // order of threads and of blocks; an odd one lets a warp run until it must wait
  bool poison = true;  // fill shared memory with NaN before its first use
  bool race = true;    // happens-before checks, in modules compiled with hooks
};
extern Config config;

// ---- fibers.cpp: one stack a CUDA thread
struct Fiber {
  enum State : uint8_t { kReady, kBlocked, kDone };
  unsigned thread = 0;
  uint3 index{};
  State state = kReady;
  const char* waits_in = "";
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
};
void prepare_fiber(Fiber& fiber, void (*entry)());
void switch_to(Fiber* next, bool dying = false);  // nullptr: back to the caller of launch()
void entered_fiber();                             // the first thing that an entry does
void find_host_stack();
bool on_a_stack(uintptr_t address);  // a fiber's, or the host's: private to one thread
extern Fiber* running;               // nullptr on the host

// ---- scheduler.cpp: who runs next, and who waits for whom
extern std::vector<Fiber> fibers;
extern unsigned block_number;
extern bool exchanging;  // a collective is moving values for all its lanes: nobody's own accesses
std::string where();     // block and thread that runs, in words

// ---- memory.cpp: shared memory, extents of buffers, and which accesses are ordered
using Clock = std::vector<uint32_t>;  // a time for each thread of the block
void memory_of_launch();
void memory_of_block();
void release(Clock& clock, unsigned thread);
void acquire(const Clock& clock, unsigned thread);
void access(const void* p, size_t bytes, bool write, bool is_atomic, void* code);
void add_buffer(const void* p, size_t bytes, const char* name, bool writable);
void clear_buffers();
bool has_hooks();
}  // namespace emu
