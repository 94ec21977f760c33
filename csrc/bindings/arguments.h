// From numbers to the fields of a params struct.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "../common/types.h"

namespace bindings {
namespace py = pybind11;
using namespace pybind11::literals;
using fasttx::DType;
using Address = uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline fasttx::In in(Address data, int dtype) {
  return {.data = pointer(data), .dtype = static_cast<DType>(dtype)};
}

inline fasttx::Out out_of(Address data, int dtype) {
  return {.data = pointer(data), .dtype = static_cast<DType>(dtype)};
}

inline fasttx::Dropout dropout_of(Address rng_state, Address row_index, bool row_index_is_long, int threshold,
                                  float keep_scale) {
  return {
      .rng_state = pointer<const int64_t>(rng_state),
      .row_index = {.data = pointer(row_index), .is_long = row_index_is_long},
      .threshold = threshold,
      .keep_scale = keep_scale,
  };
}

}  // namespace bindings
