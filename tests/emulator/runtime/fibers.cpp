// Fibers: a stack for each CUDA thread and the switch between them.
#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>

#include "state.h"

namespace emu {
Fiber* running = nullptr;

namespace {
uint8_t* stacks = nullptr;
void* host_stack_pointer = nullptr;
[[maybe_unused]] void* host_fake_stack = nullptr;
uintptr_t host_low = 0, host_high = 0;

uint8_t* stack_of(const Fiber& fiber) {
  return stacks + fiber.thread * kStackBytes;
}
}  // namespace

// Saves the callee-saved registers on the stack that is left, and takes those that lie on the other one.
extern "C" void emu_switch_stack(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.type emu_switch_stack,@function
emu_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emu_switch_stack, .-emu_switch_stack
)");
namespace {
constexpr size_t kSavedWords = 8;  // six registers, the address to return to, and a word for the stack's alignment
constexpr size_t kEntryWord = 6;
}  // namespace
#elif defined(__aarch64__)
asm(R"(
.text
.type emu_switch_stack,%function
emu_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emu_switch_stack, .-emu_switch_stack
)");
namespace {
constexpr size_t kSavedWords = 20;  // x19 to x30 and d8 to d15
constexpr size_t kEntryWord = 11;   // x30, the address to return to
}  // namespace
#else
#error "the emulator switches stacks on x86-64 and AArch64 only"
#endif

void prepare_fiber(Fiber& fiber, void (*entry)()) {
  if (stacks == nullptr) {
    void* p = mmap(nullptr, kStackBytes * kMaxFibers, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    stacks = static_cast<uint8_t*>(p);
  }
  __asan_unpoison_memory_region(stack_of(fiber), kStackBytes);
  auto** words = reinterpret_cast<void**>(stack_of(fiber) + kStackBytes) - kSavedWords;
  memset(words, 0, kSavedWords * sizeof(void*));
  words[kEntryWord] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = words;
}

void switch_to(Fiber* next, [[maybe_unused]] bool dying) {
  if (next != nullptr && next == running) return;  // its own wake-up came while it was choosing a successor
  Fiber* before = running;
  running = next;
  if (next != nullptr) {
    thread_index = next->index;
    block_index = next->block;
  }
#if EMU_ASAN
  void** fake = dying ? nullptr : before != nullptr ? &before->fake_stack : &host_fake_stack;
  if (next != nullptr) {
    __sanitizer_start_switch_fiber(fake, stack_of(*next), kStackBytes);
  } else {
    __sanitizer_start_switch_fiber(fake, reinterpret_cast<void*>(host_low), host_high - host_low);
  }
#endif
  emu_switch_stack(before != nullptr ? &before->stack_pointer : &host_stack_pointer,
                   next != nullptr ? next->stack_pointer : host_stack_pointer);
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(before != nullptr ? before->fake_stack : host_fake_stack, nullptr, nullptr);
#endif
}

void entered_fiber() {
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void find_host_stack() {
  thread_local uintptr_t low = 0, high = 0;  // asking reads /proc: once a thread
  if (high == 0) {
    pthread_attr_t attributes;
    void* base = nullptr;
    size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &base, &bytes);
    pthread_attr_destroy(&attributes);
    low = reinterpret_cast<uintptr_t>(base);
    high = low + bytes;
  }
  host_low = low;
  host_high = high;
}

bool on_a_stack(uintptr_t address) {
  return (address >= host_low && address < host_high) ||
         address - reinterpret_cast<uintptr_t>(stacks) < kStackBytes * kMaxFibers;
}
}  // namespace emu
