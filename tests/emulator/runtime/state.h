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

constexpr size_t kMaxThreads = 1024;  // of a block
constexpr unsigned kMaxCluster = 8;   // blocks of a cluster, without asking for more than every device has
constexpr size_t kMaxFibers = kMaxThreads * kMaxCluster;
constexpr size_t kStackBytes = EMU_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t kArenaBytes = 256 << 10;  // of a block

struct Config {
  uint64_t seed = 1;   // order of threads and of blocks; an odd one lets a warp run until it must wait
  bool poison = true;  // fill shared memory with NaN before its first use
  bool race = true;    // happens-before checks, in modules compiled with hooks
};
extern Config config;
extern Device device;  // what launches believe to run on
struct LastLaunch {
  uint32_t cluster, shared_bytes;  // blocks; of dynamic shared memory
};
extern LastLaunch last_launch;

// ---- fibers.cpp: one stack a CUDA thread
struct Fiber {
  enum State : uint8_t { kReady, kBlocked, kDone };
  unsigned thread = 0;  // its place in `fibers`
  unsigned rank = 0;    // of its block in the cluster
  uint3 index{}, block{};
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

// ---- scheduler.cpp: the cluster of blocks that runs, and who of it runs next
struct Block {
  uint3 index{};
  unsigned number = 0;  // in the grid
  unsigned alive = 0;   // threads that have not exited
};
extern std::vector<Block> blocks;  // by rank; a block without a cluster is one of a single block
extern std::vector<Fiber> fibers;  // those of block 0, then of block 1, ...: `block_fibers` each
extern unsigned block_fibers;  // the threads of a block; in a cluster up to the next whole warpgroup, the rest absent
extern bool exchanging;        // a collective is moving values for all its lanes: nobody's own accesses
std::string where();           // block and thread that runs, in words
std::string name_of_thread(unsigned thread);
std::string of_rank(unsigned rank);  // " of rank 1" where there is more than one block
uint32_t draw();                     // random bits, from the seed
bool is_greedy();                    // this seed runs a warp until it must wait
void wait_in(const char* name);
void make_ready(unsigned thread);
unsigned lanes_of(unsigned warp);  // the lanes that exist: the last warp of a block may be partly empty

// ---- rendezvous.cpp: functions over a warp or a warpgroup, and the barrier of a block
// As collective(), over the four warps whose first thread is `first`; slots[i] is what thread first + i passed.
void warpgroup_collective(const char* name, unsigned first, void* slot, void (*exchange)(void** slots));
void rendezvous_of_cluster();
void rendezvous_of_exit();  // the running thread exits, and is no longer counted as alive

// ---- memory.cpp: shared memory and the extents of buffers
void memory_of_launch(size_t shared_bytes);
void memory_of_cluster();
// `align`: what the address must be a multiple of.
void access(const void* p, size_t bytes, size_t align, bool write, bool is_atomic, void* code);
void add_buffer(const void* p, size_t bytes, const char* name, bool writable);
void clear_buffers();
bool has_hooks();
std::string source_line(void* code);
// `what` names the instruction, `code` is the address to which it returns.
uint8_t* shared_pointer(uint32_t address, size_t bytes, size_t align, const char* what, void* code);
void access_shared(uint32_t address, size_t bytes, bool write, void* code);
void write_shared_of(unsigned rank, uint32_t address, const void* data, size_t bytes, const char* what, void* code);
void start_copy(uint32_t address, size_t bytes, void* code);  // until it lands, nobody may touch the bytes
void land_copy(unsigned rank, uint32_t address, const uint8_t* data, size_t bytes, bool by_engine);
void read_by_tensor_cores(const std::vector<uint32_t>& addresses, size_t bytes_at_each, unsigned first_thread,
                          uint32_t group, void* code);

// ---- order.cpp: which accesses are ordered; all but checks_order() do nothing where nothing is checked
using Clock = std::vector<uint32_t>;  // a time for each thread of the cluster, copy engine and warp's tensor core
bool checks_order();
void release(Clock& clock, unsigned thread);
void release_start(Clock& clock, unsigned thread);  // that it has started, and nothing that it did
void acquire(const Clock& clock, unsigned thread);
void copy_has_landed(Clock& clock,
                     unsigned rank);  // the engine's time moves on, and those who acquire the clock have seen it
void tensor_core_has_done(unsigned warp, uint32_t groups);
uint32_t now(unsigned thread);
uint32_t last_seen(unsigned thread);  // its time up to which the running thread is ordered after it; if checks_order()
bool fenced(unsigned thread, uint32_t written, uint32_t seen);  // towards the asynchronous proxy
// If checks_order(): whether some thread of that block is ordered after the time of `thread`, and whether the running
// thread is ordered after something in that block.
bool some_thread_saw(unsigned rank, unsigned thread, uint32_t time);
bool some_thread_started(unsigned rank);

// ---- cluster.cpp: the cluster barrier, and shared memory of other blocks
void barrier_of_cluster();
void cluster_of_exit();
std::string describe_cluster_barrier();

// ---- instructions.cpp, sm90.cpp, wgmma.cpp: the state that instructions keep for the blocks that run
float widened(Element element, uint16_t bits);
void copies_of_cluster();
void copies_of_exit();  // the running thread exits: fails if it leaves something open
void barriers_of_cluster();
void barriers_of_cluster_end();
bool land_some_copy();  // of TMA; false where none is under way
std::string describe_barriers();
void products_of_cluster();
void products_of_exit();
bool holds_accumulator(uintptr_t address, size_t bytes);  // of the running thread, between wgmma and its wait
}  // namespace emu
