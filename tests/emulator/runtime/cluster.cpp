// Clusters: their barrier, and stores into shared memory of other blocks.
//
// An address of shared memory of the block of rank r is its offset there plus (r + 1) << 24; without the upper bits it
// is one of the block that uses it.
#include <algorithm>
#include <utility>

#include "state.h"

namespace emu {
namespace {
constexpr unsigned kRankShift = 24;

struct ClusterBarrier {
  unsigned phases = 0;        // that have ended
  unsigned missing = 0;       // threads that have neither arrived in this phase nor exited
  Clock arriving, completed;  // of this phase, and of the last
  std::vector<unsigned> waiting;
};

struct Progress {  // of a thread: in how many phases it has arrived, and how many it has waited for
  unsigned arrivals = 0, waits = 0;
};

struct RemoteAccess {
  unsigned rank, thread;  // whose memory, and who
  uint32_t time;
  void* code;
};

ClusterBarrier cluster_barrier;
std::vector<Progress> progress;
std::vector<RemoteAccess> remote_accesses;  // the latest of each thread to each block

void end_phase_if_complete() {
  ClusterBarrier& b = cluster_barrier;
  if (b.missing != 0) return;
  b.phases++;
  b.missing = 0;
  for (const Block& block : blocks) b.missing += block.alive;
  b.completed = std::exchange(b.arriving, {});
  for (unsigned thread : std::exchange(b.waiting, {})) {
    acquire(b.completed, thread);
    make_ready(thread);
  }
}

// Whether something tells the running thread that the block has started.
bool knows_started(unsigned rank) {
  return checks_order() ? some_thread_started(rank) : cluster_barrier.phases != 0;
}
}  // namespace

uint32_t cluster_rank() {
  if (device.code < 90) return 0;  // as compiled for less
  return running->rank;
}

uint32_t cluster_size() {
  if (device.code < 90) return 1;
  return static_cast<uint32_t>(blocks.size());
}

void cluster_arrive(bool releases) {
  collective("barrier.cluster.arrive", ~0u, nullptr, nullptr, false);
  Progress& mine = progress[running->thread];
  if (mine.arrivals != mine.waits) fail("barrier.cluster.arrive without a wait for the phase before");
  mine.arrivals++;
  (releases ? release : release_start)(cluster_barrier.arriving, running->thread);
  cluster_barrier.missing--;
  end_phase_if_complete();
}

void cluster_wait() {
  collective("barrier.cluster.wait", ~0u, nullptr, nullptr, false);
  Progress& mine = progress[running->thread];
  if (mine.arrivals == mine.waits) fail("barrier.cluster.wait without barrier.cluster.arrive");
  mine.waits++;
  if (cluster_barrier.phases >= mine.waits) return acquire(cluster_barrier.completed, running->thread);
  cluster_barrier.waiting.push_back(running->thread);
  wait_in("barrier.cluster.wait");
}

uint32_t cluster_address(uint32_t shared, uint32_t rank) {
  if (rank >= blocks.size()) fail("mapa: there is no rank %u in a cluster of %zu blocks", rank, blocks.size());
  return shared | (rank + 1) << kRankShift;
}

void cluster_store(uint32_t address, const void* data, size_t bytes) {
  void* code = __builtin_return_address(0);
  unsigned rank = address >> kRankShift == 0 ? running->rank : (address >> kRankShift) - 1;
  const uint32_t offset = address & ((1u << kRankShift) - 1);
  if (rank >= blocks.size()) fail("st.shared::cluster: 0x%x is no address%s", address, source_line(code).c_str());
  if (rank != running->rank) {
    if (blocks[rank].alive == 0) {
      fail("st.shared::cluster to the block%s, which has exited%s", of_rank(rank).c_str(), source_line(code).c_str());
    }
    if (!knows_started(rank)) {
      fail("st.shared::cluster to the block%s, of which nothing says that it has started%s", of_rank(rank).c_str(),
           source_line(code).c_str());
    }
    const RemoteAccess access{rank, running->thread, now(running->thread), code};
    auto same = [&](const RemoteAccess& a) { return a.rank == rank && a.thread == access.thread; };
    if (checks_order()) {
      std::erase_if(remote_accesses, same);
      remote_accesses.push_back(access);
    }
  }
  write_shared_of(rank, offset, data, bytes, "st.shared::cluster", code);
}

void barrier_of_cluster() {
  cluster_barrier = {};
  for (const Block& block : blocks) cluster_barrier.missing += block.alive;
  progress.assign(fibers.size(), {});
  remote_accesses.clear();
}

void cluster_of_exit() {
  const Progress& mine = progress[running->thread];
  if (mine.arrivals == cluster_barrier.phases) {
    cluster_barrier.missing--;
    end_phase_if_complete();
  }
  if (blocks[running->rank].alive != 0 || !checks_order()) return;
  for (const RemoteAccess& a : remote_accesses) {
    if (a.rank != running->rank || some_thread_saw(a.rank, a.thread, a.time)) continue;
    fail("the block%s exits, unordered with an access to its shared memory by %s%s", of_rank(a.rank).c_str(),
         name_of_thread(a.thread).c_str(), source_line(a.code).c_str());
  }
}

std::string describe_cluster_barrier() {
  if (cluster_barrier.waiting.empty()) return "";
  return "; the barrier of the cluster lacks " + std::to_string(cluster_barrier.missing) + " threads";
}
}  // namespace emu
