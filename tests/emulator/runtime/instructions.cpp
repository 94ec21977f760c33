// Instructions of a warp: mma.sync and ldmatrix, values of a warp, and cp.async, whose data land at the thread's own
// wait.
#include "state.h"

namespace emu {
namespace {

struct Product {
  void* d;
  const uint32_t *a, *b;
};

// The fragments of 32 lanes put together, multiplied and taken apart. `kPerRegister` elements lie in a register.
template <int kPerRegister, class Sum, class Value>
void multiply(void** slots, Value value) {
  constexpr int kDepth = 8 * kPerRegister;
  Sum a[16][kDepth], b[kDepth][8], d[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const auto* mine = static_cast<Product*>(slots[lane]);
    int g = lane / 4, t = lane % 4;
    for (int k = 0; k < kPerRegister; k++) {
      for (int i = 0; i < 4; i++) {
        a[g + 8 * (i % 2)][kPerRegister * (t + 4 * (i / 2)) + k] = value(mine->a[i], k);
      }
      for (int i = 0; i < 2; i++) b[kPerRegister * (t + 4 * i) + k][g] = value(mine->b[i], k);
    }
    for (int i = 0; i < 4; i++) d[g + 8 * (i / 2)][2 * t + i % 2] = static_cast<Sum*>(mine->d)[i];
  }
  for (int m = 0; m < 16; m++) {
    for (int k = 0; k < kDepth; k++) {
      for (int n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    auto* out = static_cast<Sum*>(static_cast<Product*>(slots[lane])->d);
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) out[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
  }
}

struct Row {
  uint8_t bytes[16];
  uint32_t* r;
};

template <bool kTransposed>
void distribute(void** slots, unsigned) {
  auto lane_row = [&](int lane) { return static_cast<Row*>(slots[lane]); };
  for (int lane = 0; lane < 32; lane++) {
    int g = lane / 4, t = lane % 4;
    for (int matrix = 0; matrix < 4; matrix++) {
      uint16_t pair[2];
      for (int half = 0; half < 2; half++) {
        int row = kTransposed ? 2 * t + half : g, column = kTransposed ? g : 2 * t + half;
        memcpy(&pair[half], lane_row(8 * matrix + row)->bytes + 2 * column, 2);
      }
      memcpy(&lane_row(lane)->r[matrix], pair, 4);
    }
  }
}

struct Copy {
  uint32_t shared;
  uint8_t data[16];
};

struct Copies {
  std::vector<Copy> started;
  std::vector<size_t> groups;  // of each committed group, how many of the copies it and those before it hold
};
std::vector<Copies> copies;  // of each thread
}  // namespace

uint32_t warp_uniform(uint32_t x) {
  collective(
      "warp_uniform", ~0u, &x,
      [](void** slots, unsigned) {
        for (int i = 1; i < 32; i++) {
          const uint32_t first = *static_cast<uint32_t*>(slots[0]), other = *static_cast<uint32_t*>(slots[i]);
          if (other != first) fail("warp_uniform: lane 0 gave %u, and lane %d gave %u", first, i, other);
        }
      },
      false);
  return x;
}

float widened(Element element, uint16_t bits) {
  if (element == Element::kBF16) {
    uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &word, 4);
    return x;
  }
  static const std::vector<float> table = [] {  // the header's conversion takes branches, and this is the inner loop
    std::vector<float> values(1 << 16);
    for (unsigned i = 0; i < values.size(); i++) {
      __half_raw raw;
      raw.x = static_cast<unsigned short>(i);
      values[i] = __half2float(__half(raw));
    }
    return values;
  }();
  return table[bits];
}

void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b) {
  Product product{d, a, b};
  if (element == Element::kF16) {
    collective(
        "mma.m16n8k16.f16", ~0u, &product,
        [](void** slots, unsigned) {
          multiply<2, float>(slots, [](uint32_t r, int k) { return widened(Element::kF16, uint16_t(r >> (16 * k))); });
        },
        false);
  } else {
    collective(
        "mma.m16n8k16.bf16", ~0u, &product,
        [](void** slots, unsigned) {
          multiply<2, float>(slots, [](uint32_t r, int k) { return widened(Element::kBF16, uint16_t(r >> (16 * k))); });
        },
        false);
  }
}

void mma_m16n8k32(int* d, const uint32_t* a, const uint32_t* b) {
  Product product{d, a, b};
  collective(
      "mma.m16n8k32.s8", ~0u, &product,
      [](void** slots, unsigned) {
        multiply<4, int>(slots, [](uint32_t r, int k) { return static_cast<int8_t>(r >> (8 * k)); });
      },
      false);
}

void ldmatrix_x4(uint32_t* r, uint32_t row, bool transposed) {
  void* code = __builtin_return_address(0);
  Row mine{{}, r};
  memcpy(mine.bytes, shared_pointer(row, 16, 16, "ldmatrix", code), 16);
  access_shared(row, 16, false, code);
  if (transposed) {
    collective("ldmatrix.x4.trans", ~0u, &mine, distribute<true>, false);
  } else {
    collective("ldmatrix.x4", ~0u, &mine, distribute<false>, false);
  }
}

void cp_async(uint32_t shared, const void* global, int valid_bytes) {
  void* code = __builtin_return_address(0);
  shared_pointer(shared, 16, 16, "cp.async", code);
  if (valid_bytes < 0 || valid_bytes > 16) fail("cp.async: %d of 16 bytes", valid_bytes);
  Copy copy{shared, {}};
  if (valid_bytes > 0) {
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) fail("cp.async: %p is no multiple of 16", global);
    access(global, static_cast<size_t>(valid_bytes), 16, false, false, code);
    memcpy(copy.data, global, static_cast<size_t>(valid_bytes));
  }
  start_copy(shared, 16, code);
  copies[running->thread].started.push_back(copy);
}

void cp_async_commit() {
  Copies& mine = copies[running->thread];
  mine.groups.push_back(mine.started.size());
}

void cp_async_wait(int groups_left) {
  Copies& mine = copies[running->thread];
  if (mine.groups.size() <= static_cast<size_t>(groups_left)) return;
  size_t done = mine.groups.size() - static_cast<size_t>(groups_left), landed = mine.groups[done - 1];
  for (size_t i = 0; i < landed; i++) land_copy(running->rank, mine.started[i].shared, mine.started[i].data, 16, false);
  mine.started.erase(mine.started.begin(), mine.started.begin() + static_cast<ptrdiff_t>(landed));
  mine.groups.erase(mine.groups.begin(), mine.groups.begin() + static_cast<ptrdiff_t>(done));
  for (size_t& end : mine.groups) end -= landed;
}

void copies_of_cluster() {
  copies.assign(fibers.size(), {});
}

void copies_of_exit() {
  if (!copies[running->thread].started.empty()) fail("thread exits with cp.async that it has not waited for");
}
}  // namespace emu
