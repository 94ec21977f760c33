// The scheduler: runs a grid cluster by cluster (a block where there are none), its threads in an order drawn from the
// seed, and finds every wait that nobody ends.
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
Device device;
LastLaunch last_launch;
std::vector<Block> blocks;
std::vector<Fiber> fibers;
unsigned block_fibers = 0;

namespace {
std::mutex one_launch;        // everything here is of the process; a launch from a second thread waits
std::vector<uint32_t> ready;  // a bit for each lane of each warp
unsigned block_threads = 0;
unsigned alive = 0;
uint64_t random_state = 0;
bool greedy = false;
bool failed = false;
std::string report;
const char* kernel_name = "";
void (*kernel_body)(void*) = nullptr;
void* kernel_argument = nullptr;

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
      unsigned rank = warp * 32 / block_fibers;
      snprintf(line, sizeof line, "; warp %u%s lanes %08x: %s", warp - rank * block_fibers / 32, of_rank(rank).c_str(),
               lanes, state.c_str());
      text += line;
    }
  }
  fail("%s%s%s", text.c_str(), describe_cluster_barrier().c_str(), describe_barriers().c_str());
}

Fiber* next_fiber() {
  if (!greedy && draw() % 8 == 0) land_some_copy();
  unsigned warps = ready.size(), warp = running != nullptr ? running->thread / 32 : draw() % warps;
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

void run_thread() {
  entered_fiber();
  kernel_body(kernel_argument);
  running->state = Fiber::kDone;
  alive--;
  blocks[running->rank].alive--;
  rendezvous_of_exit();
  copies_of_exit();
  products_of_exit();
  cluster_of_exit();
  switch_to(alive != 0 ? next_fiber() : nullptr, true);
  abort();
}

void run_cluster(unsigned first) {
  dim3 grid = grid_size, block = block_size;
  alive = block_threads * blocks.size();
  ready.assign((fibers.size() + 31) / 32, 0);
  for (unsigned rank = 0; rank < blocks.size(); rank++) {
    unsigned number = first + rank;
    blocks[rank] = {{number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)}, number, block_threads};
  }
  memory_of_cluster();
  rendezvous_of_cluster();
  barrier_of_cluster();
  copies_of_cluster();
  barriers_of_cluster();
  products_of_cluster();
  for (unsigned i = 0; i < fibers.size(); i++) {
    unsigned rank = i / block_fibers, t = i % block_fibers;
    fibers[i] = Fiber{};
    fibers[i].thread = i;
    fibers[i].rank = rank;
    fibers[i].state = Fiber::kDone;
    if (t >= block_threads) continue;  // absent
    fibers[i].index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
    fibers[i].block = blocks[rank].index;
    prepare_fiber(fibers[i], run_thread);
    make_ready(i);
  }
  switch_to(next_fiber());
  if (failed) throw std::runtime_error(report);
  barriers_of_cluster_end();
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
  ready[thread / 32] |= 1u << (thread % 32);
}

unsigned lanes_of(unsigned warp) {
  unsigned before = warp * 32 % block_fibers, left = block_threads > before ? block_threads - before : 0;
  return left >= 32 ? ~0u : (1u << left) - 1;
}

std::string of_rank(unsigned rank) {
  return blocks.size() > 1 ? " of rank " + std::to_string(rank) : "";
}

std::string name_of_thread(unsigned thread) {
  unsigned t = thread % block_fibers;
  return "thread " + std::to_string(t) + of_rank(thread / block_fibers) + " [warp " + std::to_string(t / 32) +
         " lane " + std::to_string(t % 32) + "]";
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
           running->thread % block_fibers / 32, running->thread % 32);
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

size_t Device::shared_bytes() const {  // CUDA C++ programming guide, table of technical specifications
  return (arch == 86 || arch == 89 || arch >= 120 ? 99 : arch < 90 ? 163 : 227) << 10;
}

Device current_device() {
  return device;
}

void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster, void (*body)(void*),
            void* argument) {
  std::lock_guard<std::mutex> alone(one_launch);
  kernel_name = name;
  failed = exchanging = false;
  running = nullptr;
  unsigned threads = block.x * block.y * block.z;
  // limits of the same table
  if (threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
      grid.y > 65535 || grid.z == 0 || grid.z > 65535 || shared_bytes > device.shared_bytes()) {
    fail("invalid launch: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of dynamic shared memory", grid.x, grid.y,
         grid.z, block.x, block.y, block.z, shared_bytes);
  }
  if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0 ||
      (cluster > 1 && std::min(device.arch, device.code) < 90)) {
    fail("invalid launch: grid (%u,%u,%u) in clusters of %u blocks on sm_%d", grid.x, grid.y, grid.z, cluster,
         std::min(device.arch, device.code));
  }
  find_host_stack();
  last_launch = {cluster, static_cast<uint32_t>(shared_bytes)};
  grid_size = grid;
  block_size = block;
  kernel_body = body;
  kernel_argument = argument;
  random_state = config.seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
  greedy = config.seed & 1;
  block_threads = threads;
  block_fibers = cluster > 1 ? (threads + 127) / 128 * 128 : threads;
  blocks.assign(cluster, {});
  fibers.resize(block_fibers * cluster);
  memory_of_launch(shared_bytes);
  std::vector<unsigned> order(grid.x / cluster * grid.y * grid.z);
  for (unsigned i = 0; i < order.size(); i++) order[i] = i;
  for (unsigned i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw() % i]);
  for (unsigned number : order) run_cluster(number * cluster);
}
}  // namespace emu
