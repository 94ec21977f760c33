// What would corrupt memory is refused here again, whatever the caller has checked.
#pragma once
#include <stdexcept>
#include <string>

namespace fasttx {

inline void require(bool holds, const char* kernel, const char* what) {
  if (!holds) throw std::invalid_argument(std::string(kernel) + ": " + what);
}

}  // namespace fasttx
