// One list a launcher: the members of its params struct. Keyword arguments of their names fill them; each is required.
#pragma once
#include <vector>

#include "values.h"

namespace bindings {

// How many members a struct has, an array as many as it has elements: an initialiser too many does not compile.
struct Anything {
  template <class T>
  operator T() const;
};

template <class P, class... Initialisers>
constexpr size_t count_members() {
  if constexpr (requires { P{Initialisers{}..., Anything{}}; }) {
    return count_members<P, Initialisers..., Anything>();
  } else {
    return sizeof...(Initialisers);
  }
}

template <auto kAt>
struct Member {
  const char* name;
};

template <class>
struct TypeAt;
template <class P, class M>
struct TypeAt<M P::*> {
  using type = M;
};

// The members of a struct that Python gives: all but `tiles`, which a launcher fills in itself.
template <class P>
class Members {
 public:
  template <auto... kAt>
  Members(Member<kAt>... members) : entries_{entry_of(members)...} {
    static_assert(((std::rank_v<typename TypeAt<decltype(kAt)>::type> == 0
                        ? 1
                        : std::extent_v<typename TypeAt<decltype(kAt)>::type>)+... +
                   (requires(P p) { p.tiles; } ? 1 : 0)) == count_members<P>(),
                  "the list has not all members of the struct, or one twice");
  }

  // From a name to what a member may be given; of a struct to such a dict.
  py::dict kinds() const {
    py::dict kinds;
    for (const Entry& entry : entries_) kinds[entry.name] = entry.kind();
    return kinds;
  }

  void fill(P& to, const Given& given) const {
    if (!PyDict_Check(given.value)) given.refuse_type("dict");
    for (const Entry& entry : entries_) {
      PyObject* value = PyDict_GetItemWithError(given.value, entry.key);
      if (value == nullptr)
        throw py::type_error(given.path() + ": " + entry.name + " is missing; needed are " + names());
      entry.fill(to, {entry.name, &given, value});
    }
    if (static_cast<size_t>(PyDict_Size(given.value)) == entries_.size()) return;
    const py::dict known = kinds();
    for (auto item : py::reinterpret_borrow<py::dict>(given.value)) {
      if (!known.contains(item.first)) given.refuse(py::repr(item.first), names());
    }
  }

 private:
  struct Entry {
    const char* name;
    PyObject* key;  // the name once more, interned and never freed: Python may be gone before this list is
    py::object (*kind)();
    void (*fill)(P&, const Given&);
  };

  template <auto kAt>
  static Entry entry_of(Member<kAt> member) {
    using Type = Convert<typename TypeAt<decltype(kAt)>::type>;
    return {member.name, PyUnicode_InternFromString(member.name), Type::kind,
            [](P& to, const Given& given) { Type::fill(to.*kAt, given); }};
  }

  std::string names() const {
    std::string names;
    for (const Entry& entry : entries_) names += (names.empty() ? "" : ", ") + std::string(entry.name);
    return names;
  }

  std::vector<Entry> entries_;
};

// The list of a struct that is itself a member.
template <class S>
const Members<S>& members_of();

template <class S>
struct Convert<S, std::enable_if_t<std::is_class_v<S>>> {
  static py::object kind() { return members_of<S>().kinds(); }
  static void fill(S& to, const Given& given) { members_of<S>().fill(to, given); }
};

template <class P>
void define(py::module_& m, const char* name, void (*launch)(const P&, fasttx::Stream), Members<P> members) {
  m.attr("SIGNATURES")[name] = members.kinds();
  m.def(
      name,
      [name, launch, members = std::move(members)](uintptr_t stream, const py::kwargs& given) {
        P params{};
        members.fill(params, {name, nullptr, given.ptr()});
        py::gil_scoped_release released;
        launch(params, reinterpret_cast<fasttx::Stream>(stream));
      },
      py::arg("stream"), py::pos_only());
}

}  // namespace bindings

// Of the struct P:
#define FTX_MEMBER(name)       \
  bindings::Member<&P::name> { \
    #name                      \
  }
#define FTX_STRUCT(Struct, ...)               \
  template <>                                 \
  const Members<Struct>& members_of() {       \
    using P = Struct;                         \
    static const Members<P> all{__VA_ARGS__}; \
    return all;                               \
  }
#define FTX_LAUNCHER(module, launch, Params, ...)      \
  {                                                    \
    using P = Params;                                  \
    define<P>(module, #launch, launch, {__VA_ARGS__}); \
  }
