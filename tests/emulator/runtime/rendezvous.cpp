// Rendezvous: functions over a warp and over a warpgroup, which move values between lanes, and the barriers of a block.
#include <algorithm>
#include <utility>

#include "state.h"

namespace emu {
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
  unsigned arrived = 0, threads = 0;  // `threads`: of a numbered one, how many the first to come has named
  std::vector<unsigned> waiting;
  Clock clock;
};

std::vector<std::vector<Collective>> collectives;  // of each warp
std::vector<Group> groups;
std::vector<Barrier> barriers;  // of each block
constexpr unsigned kNumbers = 16;
std::vector<Barrier> numbered;       // kNumbers of each block
std::vector<unsigned> registers_of;  // of each thread, as setmaxnreg has set them; 0: as launched

void open_barrier(Barrier& barrier) {
  Barrier done = std::exchange(barrier, Barrier{});
  for (unsigned thread : done.waiting) {
    acquire(done.clock, thread);
    make_ready(thread);
  }
}
}  // namespace

unsigned lane() {
  return running->thread % 32;
}

void collective(const char* name, unsigned mask, void* slot, Exchange exchange, bool orders_memory) {
  unsigned own = lane(), warp = running->thread / 32;
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
  const bool whole = first % block_fibers + 128 <= block_fibers && lanes_of(first / 32 + 3) == ~0u;
  if (!whole) fail("%s: a warpgroup is four whole warps", name);
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
  unsigned thread = running->thread, rank = running->rank;
  Barrier& of_block = barriers[rank];
  of_block.arrived++;
  release(of_block.clock, thread);
  if (of_block.arrived < blocks[rank].alive) {
    of_block.waiting.push_back(thread);
    return wait_in("__syncthreads");
  }
  acquire(of_block.clock, thread);
  open_barrier(of_block);
}

void named_barrier(unsigned number, unsigned threads, bool waits) {
  const char* name = waits ? "bar.sync" : "bar.arrive";
  collective(name, ~0u, nullptr, nullptr, false);  // .aligned
  Barrier& b = numbered[kNumbers * running->rank + number];
  if (b.arrived == 0) b.threads = threads;
  if (b.threads != threads) {
    fail("%s: barrier %u is of %u threads here, and of %u where others came to it", name, number, threads, b.threads);
  }
  if (threads > block_fibers) fail("%s: barrier %u of %u threads, in a block of fewer", name, number, threads);
  b.arrived++;
  release(b.clock, running->thread);
  if (b.arrived < threads) {
    if (!waits) return;
    b.waiting.push_back(running->thread);
    return wait_in(name);
  }
  if (waits) acquire(b.clock, running->thread);
  open_barrier(b);
}

void set_registers(unsigned count, bool more) {
  constexpr unsigned kOfMultiprocessor = 64 << 10;
  collective(more ? "setmaxnreg.inc" : "setmaxnreg.dec", ~0u, nullptr, nullptr, false);
  registers_of[running->thread] = count;
  const unsigned first = running->thread & ~127u, block = running->rank * block_fibers;
  if (first - block + 128 > block_fibers) fail("setmaxnreg: a warpgroup is four whole warps");
  for (unsigned t = first; t < first + 128; t++) {
    if (registers_of[t] == 0 || registers_of[t] == count) continue;
    fail("setmaxnreg: %u and %u registers in one warpgroup", registers_of[t], count);
  }
  unsigned sum = 0;
  for (unsigned t = block; t < block + block_fibers; t++) sum += registers_of[t];
  if (sum > kOfMultiprocessor) fail("setmaxnreg: %u registers in a block, of %u there are", sum, kOfMultiprocessor);
}

void rendezvous_of_cluster() {
  collectives.assign(fibers.size() / 32 + 1, {});
  groups.clear();
  barriers.assign(blocks.size(), {});
  numbered.assign(kNumbers * blocks.size(), {});
  registers_of.assign(fibers.size(), 0);
}

void rendezvous_of_exit() {
  unsigned thread = running->thread;
  for (const Collective& c : collectives[thread / 32]) {
    if (c.mask >> (thread % 32) & 1) {
      fail("lane exited while its warp waits for it in %s (mask %08x, arrived %08x)", c.name, c.mask, c.arrived);
    }
  }
  for (const Group& g : groups) {
    if (thread - g.first < 128) fail("thread exited while its warpgroup waits for it in %s", g.name);
  }
  const bool last = blocks[running->rank].alive == 0;
  for (unsigned number = 0; last && number < kNumbers; number++) {
    const Barrier& b = numbered[kNumbers * running->rank + number];
    if (b.arrived != 0) fail("the block ends with %u of %u threads at barrier %u", b.arrived, b.threads, number);
  }
  // since Volta a barrier counts the threads that have not exited
  Barrier& of_block = barriers[running->rank];
  if (of_block.arrived != 0 && of_block.arrived >= blocks[running->rank].alive) open_barrier(of_block);
}
}  // namespace emu
