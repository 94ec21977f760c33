// What a compiler calls before each access in a file that it compiles with -fsanitize=thread. Defined here, so that
// neither libtsan nor LD_PRELOAD is needed and the module loads into an ordinary Python.
#include "state.h"

extern "C" {
// "Unaligned" ones are of objects whose type asks for less than their size: structs that are copied, and memcpy.
#define HOOKS(n)                                                     \
  void __tsan_read##n(void* p) {                                     \
    emu::access(p, n, n, false, false, __builtin_return_address(0)); \
  }                                                                  \
  void __tsan_write##n(void* p) {                                    \
    emu::access(p, n, n, true, false, __builtin_return_address(0));  \
  }                                                                  \
  void __tsan_unaligned_read##n(void* p) {                           \
    emu::access(p, n, 1, false, false, __builtin_return_address(0)); \
  }                                                                  \
  void __tsan_unaligned_write##n(void* p) {                          \
    emu::access(p, n, 1, true, false, __builtin_return_address(0));  \
  }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t n) {
  emu::access(p, n, 1, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  emu::access(p, n, 1, true, false, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
