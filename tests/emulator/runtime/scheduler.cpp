// The scheduler: runs a grid block by block, its threads in an order drawn from the seed, and finds every wait that
// nobody ends.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "state.h"

namespace emu {
Config config;
uint3 thread_index, block_index;
dim3 grid_size, block_size;
std::vector<Fiber> fibers;
unsigned block_number = 0;
bool exchanging = false;

namespace {
struct Collective {
  const char* name;
  unsigned mask, arrived;
  void* slots[32];
};

struct Group {  // a function over a warpgroup
  const char* name;
  unsigned first, arrived;
  void* slots[128];
};

struct Barrier {
  unsigned arrived = 0;
  std::vector<unsigned> waiting;
  Clock clock;
};

std::mutex one_launch;        // everything here is of the process; a launch from a second thread waits
std::vector<uint32_t> ready;  // a bit for each lane of each warp
std::vector<std::vector<Collective>> collectives;
std::vector<Group> groups;
Barrier block_barrier;
unsigned alive = 0;
uint64_t random_state = 0;
bool greedy = false;
bool failed = false;
std::string report;
const char* kernel_name = "";
void (*kernel_body)(void*) = nullptr;
void* kernel_argument = nullptr;

unsigned warp_of(unsigned thread) {
  return thread / 32;
}

unsigned lanes_of(unsigned warp) {  // the lanes that exist: the last warp of a block may be partly empty
  size_t left = fibers.size() - warp * 32;
  return left >= 32 ? ~0u : (1u << left) - 1;
}

[[noreturn]] void deadlock() {
  std::string text = "deadlock: no thread can run";
  for (unsigned warp = 0; warp < ready.size(); warp++) {
    std::vector<std::pair<std::string, unsigned>> groups;
    for (unsigned i = 0; i < 32; i++) {
      if (!(lanes_of(warp) >> i & 1)) continue;
      const Fiber& fiber = fibers[warp * 32 + i];
      std::string state = fiber.state == Fiber::kDone ? "exited" : fiber.waits_in;
      auto same = [&](const auto& group) { return group.first == state; };
      auto found = std::find_if(groups.begin(), groups.end(), same);
      if (found == groups.end()) found = groups.insert(groups.end(), {state, 0});
      found->second |= 1u << i;
    }
    for (const auto& [state, lanes] : groups) {
      char line[128];
      snprintf(line, sizeof line, "; warp %u lanes %08x: %s", warp, lanes, state.c_str());
      text += line;
    }
  }
  fail("%s%s", text.c_str(), describe_barriers().c_str());
}

Fiber* next_fiber() {
  if (!greedy && draw() % 8 == 0) land_some_copy();
  unsigned warps = ready.size(), warp = running != nullptr ? warp_of(running->thread) : draw() % warps;
  if (ready[warp] == 0 || (!greedy && draw() % 8 == 0)) {
    unsigned start = draw() % warps, i = 0;
    while (i < warps && ready[(start + i) % warps] == 0) i++;
    if (i == warps) {
      if (!land_some_copy()) deadlock();
      return next_fiber();
    }
    warp = (start + i) % warps;
  }
  unsigned turn = draw() % 32, lanes = ready[warp];
  unsigned turned = turn != 0 ? (lanes >> turn) | (lanes << (32 - turn)) : lanes;
  unsigned lane = (__builtin_ctz(turned) + turn) % 32;
  ready[warp] &= ~(1u << lane);
  return &fibers[warp * 32 + lane];
}

void open_barrier() {
  Barrier done = std::exchange(block_barrier, Barrier{});
  for (unsigned thread : done.waiting) {
    acquire(done.clock, thread);
    make_ready(thread);
  }
}

void run_thread() {
  entered_fiber();
  kernel_body(kernel_argument);
  unsigned thread = running->thread;
  running->state = Fiber::kDone;
  alive--;
  for (const Collective& c : collectives[warp_of(thread)]) {
    if (c.mask >> (thread % 32) & 1) {
      fail("lane exited while its warp waits for it in %s (mask %08x, arrived %08x)", c.name, c.mask, c.arrived);
    }
  }
  for (const Group& g : groups) {
    if (thread - g.first < 128) fail("thread exited while its warpgroup waits for it in %s", g.name);
  }
  copies_of_exit();
  products_of_exit();
  // since Volta a barrier counts the threads that have not exited
  if (block_barrier.arrived != 0 && block_barrier.arrived >= alive) open_barrier();
  switch_to(alive != 0 ? next_fiber() : nullptr, true);
  abort();
}

void run_block(unsigned number) {
  dim3 grid = grid_size, block = block_size;
  block_number = number;
  block_index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
  alive = fibers.size();
  ready.assign((fibers.size() + 31) / 32, 0);
  collectives.assign(ready.size(), {});
  groups.clear();
  block_barrier = {};
  memory_of_block();
  copies_of_block();
  barriers_of_block();
  products_of_block();
  for (unsigned t = 0; t < fibers.size(); t++) {
    fibers[t] = Fiber{};
    fibers[t].thread = t;
    fibers[t].index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
    prepare_fiber(fibers[t], run_thread);
    make_ready(t);
  }
  switch_to(next_fiber());
  if (failed) throw std::runtime_error(report);
  barriers_of_block_end();
}
}  // namespace

uint32_t draw() {  // xorshift64 (Marsaglia, 2003)
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 16);
}

bool is_greedy() {
  return greedy;
}

void make_ready(unsigned thread) {
  fibers[thread].state = Fiber::kReady;
  ready[warp_of(thread)] |= 1u << (thread % 32);
}

void wait_in(const char* name) {
  running->state = Fiber::kBlocked;
  running->waits_in = name;
  switch_to(next_fiber());
}

std::string where() {
  if (running == nullptr) return "host";
  const uint3 b = block_index, t = running->index;
  char text[160];
  snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u) [warp %u lane %u]", b.x, b.y, b.z, t.x, t.y, t.z,
           warp_of(running->thread), running->thread % 32);
  return text;
}

void fail(const char* format, ...) {
  char text[4096];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  report = std::string("kernel ") + kernel_name + ", " + where() + ": " + text;
  exchanging = false;
  if (running == nullptr) throw std::runtime_error(report);
  failed = true;
  switch_to(nullptr, true);  // the block's other fibers are left where they stand
  abort();
}

void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* argument) {
  std::lock_guard<std::mutex> alone(one_launch);
  kernel_name = name;
  failed = exchanging = false;
  running = nullptr;
  unsigned threads = block.x * block.y * block.z;
  // limits of the CUDA C++ programming guide, table of technical specifications
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
      grid.y > 65535 || grid.z == 0 || grid.z > 65535 || shared_bytes > kMaxSharedBytes) {
    fail("invalid launch: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of dynamic shared memory", grid.x, grid.y,
         grid.z, block.x, block.y, block.z, shared_bytes);
  }
  find_host_stack();
  grid_size = grid;
  block_size = block;
  kernel_body = body;
  kernel_argument = argument;
  random_state = config.seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
  greedy = config.seed & 1;
  fibers.resize(threads);
  memory_of_launch(shared_bytes);
  std::vector<unsigned> order(grid.x * grid.y * grid.z);
  for (unsigned i = 0; i < order.size(); i++) order[i] = i;
  for (unsigned i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw() % i]);
  for (unsigned number : order) run_block(number);
}

unsigned lane() {
  return running->thread % 32;
}

void collective(const char* name, unsigned mask, void* slot, Exchange exchange, bool orders_memory) {
  unsigned own = lane(), warp = warp_of(running->thread);
  if (!(mask >> own & 1)) fail("%s: lane %u is not in its own mask %08x", name, own, mask);
  mask &= lanes_of(warp);
  for (unsigned i = 0; i < 32; i++) {
    if ((mask >> i & 1) && fibers[warp * 32 + i].state == Fiber::kDone) {
      fail("%s: lane %u of mask %08x has exited", name, i, mask);
    }
  }
  std::vector<Collective>& open = collectives[warp];
  auto mine = open.end();
  for (auto c = open.begin(); c != open.end(); ++c) {
    if (!(c->mask & mask)) continue;
    if (c->mask != mask || strcmp(c->name, name) != 0) {
      fail("divergent warp: lane %u is at %s (mask %08x) while lanes %08x wait in %s (mask %08x)", own, name, mask,
           c->arrived, c->name, c->mask);
    }
    mine = c;
  }
  if (mine == open.end()) mine = open.insert(open.end(), Collective{name, mask, 0, {}});
  mine->slots[own] = slot;
  mine->arrived |= 1u << own;
  if (mine->arrived != mask) return wait_in(name);
  exchanging = true;
  if (exchange != nullptr) exchange(mine->slots, mask);
  exchanging = false;
  open.erase(mine);
  Clock clock;
  for (unsigned i = 0; i < 32 && orders_memory; i++) {
    if (mask >> i & 1) release(clock, warp * 32 + i);
  }
  for (unsigned i = 0; i < 32; i++) {
    if (!(mask >> i & 1)) continue;
    if (orders_memory) acquire(clock, warp * 32 + i);
    if (i != own) make_ready(warp * 32 + i);
  }
}

void warpgroup_collective(const char* name, unsigned first, void* slot, void (*exchange)(void** slots)) {
  unsigned thread = running->thread;
  if (first + 128 > fibers.size()) fail("%s: a warpgroup is four whole warps", name);
  for (unsigned t = first; t < first + 128; t++) {
    if (fibers[t].state == Fiber::kDone) fail("%s: thread %u of the warpgroup has exited", name, t);
  }
  auto mine = std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.first == first; });
  if (mine == groups.end()) mine = groups.insert(groups.end(), Group{name, first, 0, {}});
  mine->slots[thread - first] = slot;
  if (++mine->arrived != 128) return wait_in(name);
  exchanging = true;
  exchange(mine->slots);
  exchanging = false;
  groups.erase(mine);
  for (unsigned t = first; t < first + 128; t++) {
    if (t != thread) make_ready(t);
  }
}

void barrier() {
  unsigned thread = running->thread;
  block_barrier.arrived++;
  release(block_barrier.clock, thread);
  if (block_barrier.arrived < alive) {
    block_barrier.waiting.push_back(thread);
    return wait_in("__syncthreads");
  }
  acquire(block_barrier.clock, thread);
  open_barrier();
}
}  // namespace emu
