#include "threads.h"

#include <atomic>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace fasttx::cpu {
namespace {

// The entry that compilers call for `#pragma omp parallel`: GNU's and LLVM's runtimes have it, and PyTorch's is one.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
Parallel parallel = nullptr;
std::atomic<bool> forked{false};  // threads of a pool do not live on in a child, and GNU's waits for them for ever

struct Work {
  int64_t parts;
  void (*part)(void*, int64_t);
  void* data;
  std::atomic<int64_t> next{0};
};

void work_on(void* given) {
  Work& work = *static_cast<Work*>(given);
  for (int64_t i = work.next++; i < work.parts; i = work.next++) work.part(work.data, i);
}

}  // namespace

bool use_threads_of(const char* library) {
#if !defined(_WIN32)
  static const int once = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  static_cast<void>(once);
  void* loaded = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  parallel = loaded == nullptr ? nullptr : reinterpret_cast<Parallel>(dlsym(loaded, "GOMP_parallel"));
#else
  static_cast<void>(library);
#endif
  return parallel != nullptr;
}

bool has_threads() {
  return parallel != nullptr && !forked;
}

void in_parallel(int64_t parts, int threads, void (*part)(void*, int64_t), void* data) {
  Work work{parts, part, data};
  if (threads > parts) threads = static_cast<int>(parts);
  if (threads <= 1) return work_on(&work);
  if (has_threads()) return parallel(work_on, &work, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(work_on, &work);
  work_on(&work);
  for (std::thread& other : others) other.join();
}

}  // namespace fasttx::cpu
