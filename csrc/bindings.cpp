// The Python module fasttx._C: numbers by name -> params struct, filled by name -> launcher. No other file knows
// pybind11.
//
// Tensors arrive as addresses, 0 for None; the caller holds the tensors, has checked them and has made their device
// current.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "common/types.h"
#include "softmax/softmax.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {
using fasttx::DType;
using Address = uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

fasttx::SoftmaxMask softmax_mask(Address data, int dtype, const std::array<int64_t, 3>& sizes,
                                 const std::array<int64_t, 5>& strides) {
  fasttx::SoftmaxMask mask{.data = pointer(data), .dtype = static_cast<DType>(dtype), .sizes = {}, .strides = {}};
  for (size_t i = 0; i < sizes.size(); i++) mask.sizes[i] = sizes[i];
  for (size_t i = 0; i < strides.size(); i++) mask.strides[i] = strides[i];
  return mask;
}

void softmax_fwd(Address out, Address x, Address mask, Address rng_state, int dtype, int mask_dtype,
                 const std::array<int64_t, 3>& mask_sizes, const std::array<int64_t, 5>& mask_strides, int64_t n_rows,
                 int64_t n_cols, int64_t stride_xm, float scale, int threshold, float keep_scale, bool log,
                 Address stream) {
  const fasttx::SoftmaxFwdParams params{
      .out = pointer(out),
      .x = pointer(x),
      .mask = softmax_mask(mask, mask_dtype, mask_sizes, mask_strides),
      .rng_state = pointer<const int64_t>(rng_state),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
      .scale = scale,
      .threshold = threshold,
      .keep_scale = keep_scale,
      .log = log,
  };
  py::gil_scoped_release released;
  fasttx::softmax_fwd(params, pointer(stream));
}

void softmax_bwd(Address dx, Address dout, Address saved, Address mask, Address rng_state, int dtype, int mask_dtype,
                 const std::array<int64_t, 3>& mask_sizes, const std::array<int64_t, 5>& mask_strides, int64_t n_rows,
                 int64_t n_cols, int64_t stride_dm, int64_t stride_sm, float scale, int threshold, float keep_scale,
                 bool log, Address stream) {
  const fasttx::SoftmaxBwdParams params{
      .dx = pointer(dx),
      .dout = pointer(dout),
      .saved = pointer(saved),
      .mask = softmax_mask(mask, mask_dtype, mask_sizes, mask_strides),
      .rng_state = pointer<const int64_t>(rng_state),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_dm = stride_dm,
      .stride_sm = stride_sm,
      .scale = scale,
      .threshold = threshold,
      .keep_scale = keep_scale,
      .log = log,
  };
  py::gil_scoped_release released;
  fasttx::softmax_bwd(params, pointer(stream));
}
}  // namespace

PYBIND11_MODULE(FASTTX_MODULE, m) {
  m.attr("ARCHS") = FASTTX_ARCHS;  // what the kernels were compiled for, "80,90a,ptx120"
  py::dict dtypes;
  dtypes["float32"] = static_cast<int>(DType::kFloat32);
  dtypes["float16"] = static_cast<int>(DType::kFloat16);
  dtypes["bfloat16"] = static_cast<int>(DType::kBFloat16);
  dtypes["float64"] = static_cast<int>(DType::kFloat64);
  dtypes["bool"] = static_cast<int>(DType::kBool);
  m.attr("DTYPES") = dtypes;
  m.def("softmax_fwd", softmax_fwd, py::kw_only(), "out"_a, "x"_a, "mask"_a, "rng_state"_a, "dtype"_a, "mask_dtype"_a,
        "mask_sizes"_a, "mask_strides"_a, "n_rows"_a, "n_cols"_a, "stride_xm"_a, "scale"_a, "threshold"_a,
        "keep_scale"_a, "log"_a, "stream"_a);
  m.def("softmax_bwd", softmax_bwd, py::kw_only(), "dx"_a, "dout"_a, "saved"_a, "mask"_a, "rng_state"_a, "dtype"_a,
        "mask_dtype"_a, "mask_sizes"_a, "mask_strides"_a, "n_rows"_a, "n_cols"_a, "stride_dm"_a, "stride_sm"_a,
        "scale"_a, "threshold"_a, "keep_scale"_a, "log"_a, "stream"_a);
}
