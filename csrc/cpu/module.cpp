// The Python module fasttx._C_cpu: numbers by position -> a struct -> the kernels of the form that was chosen.
//
// A tensor is its address and the number of its dtype (kernels.h), 0 and any where there is none. The caller has
// checked and holds the tensors. The interpreter's lock is let go while a kernel runs.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "threads.h"

namespace {
using namespace fasttx::cpu;

struct Form {
  const char* name;
  bool runs;
  Kernels (*kernels)();
};

const Form* forms(int* count) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const Form found[] = {
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"),
       avx512_kernels},
      {"avx2", static_cast<bool>(__builtin_cpu_supports("avx2")), avx2_kernels},
      {"portable", true, portable_kernels},
  };
#else
  static const Form found[] = {{"portable", true, portable_kernels}};
#endif
  *count = sizeof found / sizeof *found;
  return found;
}

const Form* chosen = nullptr;
Kernels kernels;

bool choose(const char* name) {  // null: the first that runs here
  int count;
  const Form* all = forms(&count);
  for (int i = 0; i < count; i++) {
    if (all[i].runs && (name == nullptr || std::strcmp(name, all[i].name) == 0)) {
      chosen = all + i;
      kernels = chosen->kernels();
      return true;
    }
  }
  return false;
}

// Reads a call's arguments one after another.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t count) : at_(values), left_(count) {}

  long long integer() {
    if (left_-- <= 0) {
      failed_ = true;
      return 0;
    }
    return PyLong_AsLongLong(*at_++);
  }

  double real() {
    if (left_-- <= 0) {
      failed_ = true;
      return 0;
    }
    return PyFloat_AsDouble(*at_++);
  }

  template <typename T>
  T* address() {
    return reinterpret_cast<T*>(static_cast<intptr_t>(integer()));
  }

  template <typename T>  // Floats, FloatsOut
  T floats() {
    T t;
    t.data = address<void>();
    t.dtype = static_cast<Dtype>(integer());
    return t;
  }

  bool wrong(const char* function) {
    if (PyErr_Occurred() != nullptr) return true;
    if (failed_ || left_ != 0) PyErr_Format(PyExc_TypeError, "%s: another number of arguments is wanted", function);
    return failed_ || left_ != 0;
  }

 private:
  PyObject* const* at_;
  Py_ssize_t left_;
  bool failed_ = false;
};

// Runs job(i) for each part without the interpreter's lock.
template <typename Job>
PyObject* run(int64_t parts, int threads, Job job) {
  Py_BEGIN_ALLOW_THREADS;
  in_parallel(parts, threads, [](void* data, int64_t i) { (*static_cast<Job*>(data))(i); }, &job);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

// As many threads as have that much work each.
int useful_threads(int64_t work, int64_t least, int threads) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, work / least)));
}

template <typename Params>
PyObject* run_rows(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t threads) {
  const int used = useful_threads(p.n_rows * p.n_cols, 32768, static_cast<int>(threads));
  const int64_t parts = used == 1 ? 1 : std::min<int64_t>(p.n_rows, 4 * used);
  return run(parts, used, [&](int64_t i) { kernel(p, p.n_rows * i / parts, p.n_rows * (i + 1) / parts); });
}

PyObject* quantize_per_token_fwd(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count);
  Quantize p;
  p.x_q = a.address<int8_t>();
  p.x_scale = a.address<float>();
  p.x = a.floats<Floats>();
  p.scale = a.address<const float>();
  p.n_rows = a.integer();
  p.n_cols = a.integer();
  p.stride_xm = a.integer();
  const int64_t threads = a.integer();
  return a.wrong("quantize_per_token_fwd") ? nullptr : run_rows(kernels.quantize, p, threads);
}

PyObject* add_layer_norm_quantize_fwd(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count);
  AddLayerNormQuantize p;
  p.out = a.floats<FloatsOut>();
  p.x_q = a.address<int8_t>();
  p.x_scale = a.address<float>();
  p.x = a.floats<Floats>();
  p.residual = a.floats<Floats>();
  p.weight = a.floats<Floats>();
  p.bias = a.floats<Floats>();
  p.scale = a.address<const float>();
  p.n_rows = a.integer();
  p.n_cols = a.integer();
  p.stride_xm = a.integer();
  p.stride_rm = a.integer();
  p.eps = static_cast<float>(a.real());
  const int64_t threads = a.integer();
  return a.wrong("add_layer_norm_quantize_fwd") ? nullptr : run_rows(kernels.add_layer_norm_quantize, p, threads);
}

PyObject* bias_gelu_quantize_fwd(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count);
  BiasGeluQuantize p;
  p.x_q = a.address<int8_t>();
  p.x_scale = a.address<float>();
  p.x = a.floats<Floats>();
  p.bias = a.floats<Floats>();
  p.scale = a.address<const float>();
  p.n_rows = a.integer();
  p.n_cols = a.integer();
  p.stride_xm = a.integer();
  p.tanh = a.integer() != 0;
  const int64_t threads = a.integer();
  return a.wrong("bias_gelu_quantize_fwd") ? nullptr : run_rows(kernels.bias_gelu_quantize, p, threads);
}

PyObject* run_linear(const Int8Linear& p, int64_t wanted) {
  constexpr int64_t kLeast = 1 << 22;  // products that are worth a thread
  const int threads = useful_threads(p.n_rows * p.n_out * p.n_in, kLeast, static_cast<int>(wanted));
  const int64_t panels = (p.n_out + kPanel - 1) / kPanel;
  const int64_t column_parts = threads == 1 ? 1 : std::min<int64_t>(panels, 2 * threads);
  const int64_t row_parts = std::min<int64_t>((threads + column_parts - 1) / column_parts, p.n_rows);
  return run(column_parts * row_parts, threads, [&](int64_t i) {
    const int64_t c = i % column_parts, r = i / column_parts;
    kernels.int8_linear(p, p.n_rows * r / row_parts, p.n_rows * (r + 1) / row_parts, panels * c / column_parts,
                        panels * (c + 1) / column_parts);
  });
}

PyObject* int8_linear_fwd(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments a(values, count);
  Int8Linear p;
  p.out = a.floats<FloatsOut>();
  p.x_q = a.address<const int8_t>();
  p.w_q = a.address<const int8_t>();
  p.x_scale = a.address<const float>();
  p.w_scale = a.address<const float>();
  p.bias = a.floats<Floats>();
  p.residual = a.floats<Floats>();
  p.n_rows = a.integer();
  p.n_out = a.integer();
  p.n_in = a.integer();
  p.stride_xm = a.integer();
  p.stride_wn = a.integer();
  p.stride_rm = a.integer();
  p.activation = static_cast<Activation>(a.integer());
  const int64_t threads = a.integer();
  return a.wrong("int8_linear_fwd") ? nullptr : run_linear(p, threads);
}

// ------------------------------------------------------------------------------------------------ which form, which
// threads

PyObject* names_of_forms(PyObject*, PyObject*) {
  int count;
  const Form* all = forms(&count);
  PyObject* names = PyList_New(0);
  for (int i = 0; names != nullptr && i < count; i++) {
    if (!all[i].runs) continue;
    PyObject* name = PyUnicode_FromString(all[i].name);
    if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* form(PyObject*, PyObject*) {
  return PyUnicode_FromString(chosen->name);
}

PyObject* use_form(PyObject*, PyObject* name) {
  const char* text = PyUnicode_AsUTF8(name);
  if (text == nullptr) return nullptr;
  if (choose(text)) Py_RETURN_NONE;
  return PyErr_Format(PyExc_ValueError, "form: got '%s'; allowed is one of forms()", text);
}

PyObject* threads_of(PyObject*, PyObject* library) {
  const char* text = PyUnicode_AsUTF8(library);
  return text == nullptr ? nullptr : PyBool_FromLong(use_threads_of(text));
}

PyObject* on_threads(PyObject*, PyObject*) {
  return PyBool_FromLong(has_threads());
}

#define FTX_FUNCTION(name) \
  {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(name)), METH_FASTCALL, nullptr}
PyMethodDef functions[] = {
    FTX_FUNCTION(quantize_per_token_fwd),
    FTX_FUNCTION(add_layer_norm_quantize_fwd),
    FTX_FUNCTION(bias_gelu_quantize_fwd),
    FTX_FUNCTION(int8_linear_fwd),
    {"forms", names_of_forms, METH_NOARGS, "The names of the forms that this CPU can run, the fastest first."},
    {"form", form, METH_NOARGS, "The name of the form that runs."},
    {"use_form", use_form, METH_O, "Runs that form from now on, for tests."},
    {"use_threads_of", threads_of, METH_O, "Finds PyTorch's threads in this library, which is loaded already."},
    {"has_threads", on_threads, METH_NOARGS, "Whether calls run on PyTorch's threads; else each starts its own."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cpu", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cpu() {
  choose(nullptr);
  return PyModule_Create(&definition);
}
