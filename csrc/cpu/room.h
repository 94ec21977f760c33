// Memory of a thread that its next call uses again. Not std::vector: its functions would be compiled with the
// instructions of one form, and the linker would keep a single copy for all forms.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fasttx::cpu {
namespace FTX_FORM {

class Room {
 public:
  ~Room() { std::free(memory_); }

  // At least that many bytes, at a multiple of 64; what was there before is gone.
  void* of(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 63) / 64 * 64;
      memory_ = std::aligned_alloc(64, size_);
      if (memory_ == nullptr) std::abort();  // as an operator new without exceptions: nothing can be computed
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace FTX_FORM
}  // namespace fasttx::cpu
