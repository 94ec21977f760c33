// What tests set, by ctypes: kept out of the Python module, whose interface is that of fasttx._C.
#include "state.h"

#define CONTROL extern "C" __attribute__((visibility("default")))

CONTROL void emu_configure(uint64_t seed, bool poison, bool race) {
  emu::config = {seed, poison, race};
}
CONTROL void emu_set_device(int arch, int multiprocessors, int code) {
  emu::device = {arch, multiprocessors, code};
}
CONTROL uint32_t emu_last_cluster() {
  return emu::last_launch.cluster;
}
CONTROL uint32_t emu_last_shared_bytes() {
  return emu::last_launch.shared_bytes;
}
CONTROL void emu_add_buffer(const void* p, size_t bytes, const char* name, bool writable) {
  emu::add_buffer(p, bytes, name, writable);
}
CONTROL void emu_clear_buffers() {
  emu::clear_buffers();
}
CONTROL bool emu_has_hooks() {
  return emu::has_hooks();
}
