"""How values reach a launcher: each member of its params struct by name, and what is not of its kind by a TypeError."""

from __future__ import annotations

import copy
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import host_build
import host_module
import pytest
import torch
from cuda_build import compiler, pybind11_headers

from fasttx.ops.cuda import launch as cuda

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
CSRC = host_build.ROOT / "csrc"


@pytest.fixture(scope="module")
def module():
    return host_module.load("plain")[0]


def launchers() -> dict[str, tuple[str, Path]]:
    """From each launcher that a header of csrc/ declares to the struct that it takes, and the header."""
    declared = re.compile(r"^void (\w+_(?:fwd|bwd))\(const (\w+)& params, Stream stream\);", re.M)
    return {
        name: (struct, header)
        for header in sorted(CSRC.glob("*/*.h"))
        for name, struct in declared.findall(header.read_text())
    }


def declared_members(struct: str, header: Path) -> list[str]:
    """The names in a struct's declaration, in their order."""
    (body,) = re.findall(rf"^struct {struct} {{\n(.*?)^}};", header.read_text(), re.M | re.S)
    lines = [re.sub(r"//.*", "", line).strip().rstrip(";") for line in body.splitlines()]
    declarators = [re.sub(r"^(const )?\w+\*? ", "", line).split(", ") for line in lines if line]
    return [re.sub(r"[\[{=].*", "", name) for names in declarators for name in names]


def test_every_launcher_takes_the_members_of_its_struct(module):
    """In the order of the struct; `tiles` is what a launcher finds out for itself."""
    assert len(launchers()) == 21
    functions = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}
    assert functions == set(module.SIGNATURES) == set(launchers())
    for name, (struct, header) in launchers().items():
        assert list(module.SIGNATURES[name]) == [m for m in declared_members(struct, header) if m != "tiles"], name


def test_signatures_say_what_is_written(module):
    gelu = module.SIGNATURES["bias_gelu_bwd"]
    assert gelu["dx"] == gelu["dbias"] == "out any" and gelu["partial"] == "out float32"
    assert gelu["dout"] == gelu["x"] == "in any" and gelu["tanh"] == "bool" and gelu["stride_xm"] == "int"
    assert gelu["dropout"] == {
        "rng_state": "in int64",
        "row_index": "in int32 or int64",
        "threshold": "int",
        "keep_scale": "float",
    }
    assert set(cuda._written(gelu)) == {"dx", "dbias", "partial"}


def members(module, name: str) -> dict[str, Any]:
    """Of a call that would be refused for an extent of 0, were it not for what a test changes."""
    kinds = module.SIGNATURES[name]
    first = "shape.num_heads_k" if "shape" in kinds else "n" if "n" in kinds else "n_rows"
    return host_module.altered(host_module.harmless(module, module.SIGNATURES[name]), {first: 0})


def paths(kinds: dict[str, Any], of: str = "") -> list[str]:
    nested = [paths(kind, f"{of}{name}.") for name, kind in kinds.items() if isinstance(kind, dict)]
    return [of + name for name in kinds] + sum(nested, [])


def without(given: dict[str, Any], path: str) -> dict[str, Any]:
    *structs, name = path.split(".")
    target = given = copy.deepcopy(given)
    for struct in structs:
        target = target[struct]
    del target[name]
    return given


@pytest.mark.parametrize("name", launchers())
def test_each_member_must_be_given(module, name):
    given = members(module, name)
    with pytest.raises(ValueError, match=f"{name}: n.* must lie in"):
        getattr(module, name)(0, **given)
    for path in paths(module.SIGNATURES[name]):
        *structs, member = path.split(".")
        of = "".join(f"{struct}: " for struct in structs)
        with pytest.raises(TypeError, match=rf"^{name}: {of}{member} is missing; needed are \w+, "):
            getattr(module, name)(0, **without(given, path))


@pytest.mark.parametrize("name", launchers())
def test_no_other_member_may_be_given(module, name):
    given = members(module, name)
    with pytest.raises(TypeError, match=rf"^{name}: got 'scales'; allowed is {next(iter(given))}, "):
        getattr(module, name)(0, **given, scales=1)
    for struct in (key for key, value in given.items() if isinstance(value, dict)):
        with pytest.raises(TypeError, match=rf"^{name}: {struct}: got 'other'; allowed is \w+, "):
            getattr(module, name)(0, **given | {struct: given[struct] | {"other": 1}})


WRONG = {
    "int": [
        ("1", "str; allowed is int"),
        (1.0, "float; allowed is int"),
        (True, "bool; allowed is int"),
        (None, "NoneType; allowed is int"),
        (2**70, f"{2**70}; allowed is an int of (32|64) bits"),
    ],
    "float": [("1", "str; allowed is float"), (True, "bool; allowed is float"), (None, "NoneType; allowed is float")],
    "bool": [(1, "int; allowed is bool"), (None, "NoneType; allowed is bool")],
    "dtype": [("float32", "str; allowed is int"), (8, "8; allowed is one of DTYPES"), (-1, "-1; allowed is one of")],
    "int[3]": [
        ((1, 1), "a tuple of 2; allowed is a tuple of 3"),
        ([1, 1, 1], "list; allowed is a tuple of 3"),
        ((1, 1, 1.0), "float; allowed is int"),
    ],
    "int[4]": [((1,) * 5, "a tuple of 5; allowed is a tuple of 4")],
    "int[5]": [(1, "int; allowed is a tuple of 5")],
    "any": [
        (16, r"int; allowed is \(address, dtype\) or None"),
        ((16,), "tuple; allowed is"),
        (("16", 0), "str; allowed is int"),
        ((16, 99), "99; allowed is one of DTYPES"),
        (torch.ones(1), r"Tensor; allowed is \(address, dtype\)"),
    ],
    "float32": [((16, 1), "a tensor of float16; allowed is float32")],
    "int32": [((16, 7), "a tensor of int64; allowed is int32")],
    "int64": [((16, 6), "a tensor of int32; allowed is int64")],
    "int8": [((16, 4), "a tensor of bool; allowed is int8")],
    "int32 or int64": [((16, 5), "a tensor of int8; allowed is int32 or int64")],
}


def kind_at(kinds: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        kinds = kinds[name]
    return kinds


@pytest.mark.parametrize("name", launchers())
def test_each_member_has_a_type(module, name):
    given, signature = members(module, name), module.SIGNATURES[name]
    for path in paths(signature):
        kind = kind_at(signature, path)
        if isinstance(kind, dict):
            wrong = [(1, "int; allowed is dict"), (None, "NoneType; allowed is dict")]
        else:
            wrong = WRONG[kind.removeprefix("in ").removeprefix("out ")]
        for value, message in wrong:
            with pytest.raises(TypeError, match=rf"^{name}: {re.escape(path)}: got {message}"):
                getattr(module, name)(0, **host_module.altered(given, {path: value}))


def test_an_int_is_a_float_and_none_is_no_tensor(module):
    given = members(module, "softmax_fwd")
    for changed in ({"scale": 2}, {"mask.data": None}, {"rng_state": None}):
        with pytest.raises(ValueError, match="softmax_fwd: n_rows must lie in"):
            module.softmax_fwd(0, **host_module.altered(given, changed))


def test_the_stream_is_a_number_and_the_members_have_names(module):
    given = members(module, "softmax_fwd")
    for wrong in ((), ("0",), (0, *given.values())):
        with pytest.raises(TypeError, match=r"softmax_fwd\(\): incompatible function arguments"):
            module.softmax_fwd(*wrong, **({} if len(wrong) > 1 else given))


def test_a_member_of_another_type_is_named_from_python(plain):
    with pytest.raises(TypeError, match="x_scale: got a tensor of float64; allowed is float32$"):
        cuda.launch(
            "quantize_per_token_fwd",
            x_q=torch.empty(2, 3, dtype=torch.int8),
            x_scale=torch.empty(2).double(),
            x=torch.ones(2, 3),
            scale=None,
            dtype=torch.float32,
            n_rows=2,
            n_cols=3,
            stride_xm=3,
        )


@pytest.mark.slow
@pytest.mark.parametrize("line, instead", [(", F(rate));", ");"), ("F(x), F(rate)", "F(x), F(x), F(rate)"), ("", "")])
def test_a_list_that_lacks_a_member_does_not_compile(tmp_path, line, instead):
    text = """
    #include "bindings/launcher.h"
    #define F FTX_MEMBER
    namespace bindings {
    struct Params { const void* x; float rate; };
    void start(const Params& params, fasttx::Stream stream);
    void define_launchers(py::module_& m) { FTX_LAUNCHER(m, start, Params, F(x), F(rate)); }
    }
    """
    source = tmp_path / "lists.cpp"
    source.write_text(text.replace(line, instead) if line else text)
    include = ["-isystem", str(pybind11_headers()), f"-I{sysconfig.get_paths()['include']}"]
    command = [str(compiler()), *host_build._flags(*include), "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) is (not line), done.stderr[-2000:]
    assert not line or "the list has not all members of the struct" in done.stderr
