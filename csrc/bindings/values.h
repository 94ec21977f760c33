// What the members of a params struct may be given from Python, one Convert a type: its name in SIGNATURES, and how a
// value becomes it. What is not of that kind raises a TypeError with the launcher's name and the member's.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "../common/types.h"

namespace bindings {
namespace py = pybind11;
using fasttx::DType;

constexpr std::pair<const char*, DType> kDTypes[] = {
    {"float32", DType::kFloat32}, {"float16", DType::kFloat16}, {"bfloat16", DType::kBFloat16},
    {"float64", DType::kFloat64}, {"bool", DType::kBool},       {"int8", DType::kInt8},
    {"int32", DType::kInt32},     {"int64", DType::kInt64},
};

// A value on its way to a member, or the keyword arguments of a launcher.
struct Given {
  const char* name;
  const Given* of;  // the struct that has the member; nullptr: a launcher
  PyObject* value;

  std::string path() const { return of == nullptr ? name : of->path() + (of->of == nullptr ? ": " : ".") + name; }
  [[noreturn]] void refuse(const std::string& got, const std::string& allowed) const {
    throw py::type_error(path() + ": got " + got + "; allowed is " + allowed);
  }
  [[noreturn]] void refuse_type(const std::string& allowed) const { refuse(Py_TYPE(value)->tp_name, allowed); }
};

template <class M, class = void>
struct Convert;

template <>
struct Convert<bool> {
  static py::object kind() { return py::str("bool"); }
  static void fill(bool& to, const Given& given) {
    if (!PyBool_Check(given.value)) given.refuse_type("bool");
    to = given.value == Py_True;
  }
};

template <class M>
struct Convert<M, std::enable_if_t<std::is_integral_v<M>>> {
  static py::object kind() { return py::str("int"); }
  static void fill(M& to, const Given& given) {
    if (!PyLong_Check(given.value) || PyBool_Check(given.value)) given.refuse_type("int");
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(given.value, &overflow);
    if (overflow != 0 || number < std::numeric_limits<M>::min() || number > std::numeric_limits<M>::max())
      given.refuse(py::str(py::handle(given.value)), "an int of " + std::to_string(8 * sizeof(M)) + " bits");
    to = static_cast<M>(number);
  }
};

template <>
struct Convert<float> {
  static py::object kind() { return py::str("float"); }
  static void fill(float& to, const Given& given) {
    if (!PyFloat_Check(given.value) && (!PyLong_Check(given.value) || PyBool_Check(given.value)))
      given.refuse_type("float");
    to = static_cast<float>(PyFloat_AsDouble(given.value));
    if (PyErr_Occurred()) throw py::error_already_set();
  }
};

template <>
struct Convert<DType> {
  static py::object kind() { return py::str("dtype"); }
  static void fill(DType& to, const Given& given) {
    int code = -1;
    Convert<int>::fill(code, given);
    if (code < 0 || code >= static_cast<int>(std::size(kDTypes))) given.refuse(std::to_string(code), "one of DTYPES");
    to = static_cast<DType>(code);
  }
};

template <class E, size_t kSize>
struct Convert<E[kSize]> {
  static py::object kind() { return py::str("int[" + std::to_string(kSize) + "]"); }
  static void fill(E (&to)[kSize], const Given& given) {
    const std::string allowed = "a tuple of " + std::to_string(kSize);
    if (!PyTuple_Check(given.value)) given.refuse_type(allowed);
    if (PyTuple_GET_SIZE(given.value) != kSize)
      given.refuse("a tuple of " + std::to_string(PyTuple_GET_SIZE(given.value)), allowed);
    for (size_t i = 0; i < kSize; i++)
      Convert<E>::fill(to[i], {given.name, given.of, PyTuple_GET_ITEM(given.value, i)});
  }
};

// A tensor: (address, its number in DTYPES), None where there is none. `elements` are the types that it may have.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

inline Tensor tensor_of(const Given& given, std::initializer_list<DType> elements) {
  Tensor tensor;
  if (given.value == Py_None) return tensor;
  if (!PyTuple_Check(given.value) || PyTuple_GET_SIZE(given.value) != 2) given.refuse_type("(address, dtype) or None");
  intptr_t address = 0;
  Convert<intptr_t>::fill(address, {given.name, given.of, PyTuple_GET_ITEM(given.value, 0)});
  Convert<DType>::fill(tensor.dtype, {given.name, given.of, PyTuple_GET_ITEM(given.value, 1)});
  tensor.data = reinterpret_cast<void*>(address);
  std::string allowed;
  for (DType element : elements) {
    if (tensor.dtype == element) return tensor;
    allowed += (allowed.empty() ? "" : " or ") + std::string(kDTypes[static_cast<int>(element)].first);
  }
  if (elements.size() != 0)
    given.refuse(std::string("a tensor of ") + kDTypes[static_cast<int>(tensor.dtype)].first, allowed);
  return tensor;
}

// "out float32": a launcher writes such a tensor; "in": it reads one.
template <class M>
struct Convert<M*> {
  using Element = std::remove_const_t<M>;
  static constexpr DType kElement = std::is_same_v<Element, float>    ? DType::kFloat32
                                    : std::is_same_v<Element, int8_t> ? DType::kInt8
                                    : std::is_same_v<Element, int>    ? DType::kInt32
                                                                      : DType::kInt64;
  static_assert(std::is_void_v<M> || std::is_same_v<Element, float> || std::is_same_v<Element, int8_t> ||
                std::is_same_v<Element, int> || std::is_same_v<Element, int64_t>);
  static py::object kind() {
    const std::string element = std::is_void_v<M> ? "any" : kDTypes[static_cast<int>(kElement)].first;
    return py::str((std::is_const_v<M> ? "in " : "out ") + element);
  }
  static void fill(M*& to, const Given& given) {
    if constexpr (std::is_void_v<M>) {
      to = tensor_of(given, {}).data;
    } else {
      to = static_cast<M*>(tensor_of(given, {kElement}).data);
    }
  }
};

template <>
struct Convert<fasttx::In> {
  static py::object kind() { return py::str("in any"); }
  static void fill(fasttx::In& to, const Given& given) {
    const Tensor tensor = tensor_of(given, {});
    to = {tensor.data, tensor.dtype};
  }
};

template <>
struct Convert<fasttx::Out> {
  static py::object kind() { return py::str("out any"); }
  static void fill(fasttx::Out& to, const Given& given) {
    const Tensor tensor = tensor_of(given, {});
    to = {tensor.data, tensor.dtype};
  }
};

template <>
struct Convert<fasttx::Indices> {
  static py::object kind() { return py::str("in int32 or int64"); }
  static void fill(fasttx::Indices& to, const Given& given) {
    const Tensor tensor = tensor_of(given, {DType::kInt32, DType::kInt64});
    to = {tensor.data, tensor.data != nullptr && tensor.dtype == DType::kInt64};
  }
};

}  // namespace bindings
