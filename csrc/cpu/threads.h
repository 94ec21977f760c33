// Work in parallel, by the threads that PyTorch has.
#pragma once
#include <cstdint>

namespace fasttx::cpu {

// Finds PyTorch's threads in a library that is loaded already; false if it has none. Without them each call starts
// some.
bool use_threads_of(const char* library);

// Whether calls run on PyTorch's threads.
bool has_threads();

// Calls part(data, i) for each i below `parts`, on up to `threads` threads.
void in_parallel(int64_t parts, int threads, void (*part)(void* data, int64_t i), void* data);

}  // namespace fasttx::cpu
