// Softmax and log-softmax.
#pragma once
#include "../softmax/softmax.h"
#include "arguments.h"

namespace bindings {

inline fasttx::SoftmaxMask softmax_mask(Address data, int dtype, const std::array<int64_t, 3>& sizes,
                                        const std::array<int64_t, 5>& strides) {
  fasttx::SoftmaxMask mask{.data = pointer(data), .dtype = static_cast<DType>(dtype), .sizes = {}, .strides = {}};
  for (size_t i = 0; i < sizes.size(); i++) mask.sizes[i] = sizes[i];
  for (size_t i = 0; i < strides.size(); i++) mask.strides[i] = strides[i];
  return mask;
}

inline void softmax_fwd(Address out, Address x, Address mask, Address rng_state, int dtype, int mask_dtype,
                        const std::array<int64_t, 3>& mask_sizes, const std::array<int64_t, 5>& mask_strides,
                        int64_t n_rows, int64_t n_cols, int64_t stride_xm, float scale, int threshold, float keep_scale,
                        bool log, Address stream) {
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

inline void softmax_bwd(Address dx, Address dout, Address saved, Address mask, Address rng_state, int dtype,
                        int mask_dtype, const std::array<int64_t, 3>& mask_sizes,
                        const std::array<int64_t, 5>& mask_strides, int64_t n_rows, int64_t n_cols, int64_t stride_dm,
                        int64_t stride_sm, float scale, int threshold, float keep_scale, bool log, Address stream) {
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

inline void define_softmax(py::module_& m) {
  m.def("softmax_fwd", softmax_fwd, py::kw_only(), "out"_a, "x"_a, "mask"_a, "rng_state"_a, "dtype"_a, "mask_dtype"_a,
        "mask_sizes"_a, "mask_strides"_a, "n_rows"_a, "n_cols"_a, "stride_xm"_a, "scale"_a, "threshold"_a,
        "keep_scale"_a, "log"_a, "stream"_a);
  m.def("softmax_bwd", softmax_bwd, py::kw_only(), "dx"_a, "dout"_a, "saved"_a, "mask"_a, "rng_state"_a, "dtype"_a,
        "mask_dtype"_a, "mask_sizes"_a, "mask_strides"_a, "n_rows"_a, "n_cols"_a, "stride_dm"_a, "stride_sm"_a,
        "scale"_a, "threshold"_a, "keep_scale"_a, "log"_a, "stream"_a);
}

}  // namespace bindings
