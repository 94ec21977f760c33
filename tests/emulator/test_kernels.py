"""The kernels of csrc/ in the emulator: no race, no access outside, right results, and what launchers refuse.

tests/test_ops.py and tests/ops/ hold their results, built plainly; here they run with a hook at each access, and (slow)
all those tests once more with hooks, and under the sanitizers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import host_build
import host_module
import pytest
import torch

from fasttx.ops.cuda import launch as cuda
from fasttx.ops.softmax import op as softmax
from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))


# a warp, 128 threads and 512 a row; the last of several rows in a block missing; whole vectors and none
SHAPES = [(5, 37), (2, 520), (1, 2056)]


@pytest.mark.parametrize("n_rows, n_cols", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_softmax_has_no_race(race, n_rows, n_cols, p):
    x, dout = torch.randn(2, n_rows, n_cols).bfloat16()
    mask = torch.rand(1, n_cols) < 0.8
    state = torch.tensor([3, 4]) if p else None
    expected = softmax.SOFTMAX.fwd.reference(x, mask, state, 0.5, p, False)
    first = None
    for seed in (1, 2, 3):
        race.configure(seed)
        out = torch.ops.fasttx.softmax_fwd(x, mask, state, 0.5, p, False, "cuda")
        saved = x if p else out
        dx = torch.ops.fasttx.softmax_bwd(dout, saved, mask, state, 0.5, p, False, "cuda")
        assert_as_accurate(out, expected.bfloat16(), expected)
        reference = softmax.SOFTMAX.bwd.reference(dout, saved, mask, state, 0.5, p, False)
        assert_as_accurate(dx, reference.bfloat16(), reference)
        first = first or (out, dx)
        assert torch.equal(out, first[0]) and torch.equal(dx, first[1]), "the order of threads is in the result"


def test_a_row_of_several_tiles_has_no_race(race):
    x = torch.randn(1, 16400)
    race.configure(2)
    out = torch.ops.fasttx.softmax_fwd(x, None, None, 1.0, 0.0, True, "cuda")
    assert_as_accurate(out, torch.log_softmax(x, -1), torch.log_softmax(x.double(), -1))
    dx = torch.ops.fasttx.softmax_bwd(x, out, None, None, 1.0, 0.0, True, "cuda")
    reference = softmax.SOFTMAX.bwd.reference(x, out, None, None, 1.0, 0.0, True)
    assert_as_accurate(dx, reference.float(), reference)


def test_extents_are_those_of_the_tensors(race):
    """A launch with a row too many is stopped at the first byte outside."""
    x, out = torch.randn(4, 40), torch.empty(4, 40)[:3]  # nothing else lies right behind out
    numbers = {"n_rows": 4, "n_cols": 40, "stride_xm": 40, "threshold": 0}
    others = {"scale": 1.0, "keep_scale": 1.0, "log": False, "dtype": x.dtype, "rng_state": None}
    mask = {"data": None, "dtype": torch.bool, "sizes": (1, 1, 1), "strides": (0,) * 5}
    with pytest.raises(
        RuntimeError, match=r"kernel softmax_fwd, .*out of bounds: write of \d+ bytes at out\+\d+, a buffer of 480"
    ):
        cuda.launch("softmax_fwd", out=out, x=x, mask=mask, **numbers, **others)


def test_extent_of_strided_tensors():
    base = torch.zeros(6, 10)
    assert host_module.extent(base) == 240
    assert host_module.extent(base[1:3, 2:5]) == (10 + 3) * 4
    assert host_module.extent(base[:1].expand(6, 10)) == 40
    assert host_module.extent(base[:0]) == 0


# What a sanitizer or a happens-before relation would catch in the kernels themselves, one line each.
BROKEN = {
    "the barrier of a reduction": (
        "common/reductions.cuh",
        "    __syncthreads();  // partials: written by each warp, read by all\n",
        "",
        r"race: read of shared memory|read of uninitialised shared memory",
    ),
    "two reductions on one array": (
        "common/online_sum.cuh",
        "(l * alpha, partials + kMaxWarps)",
        "(l * alpha, partials)",
        r"race: (read of|write to) shared memory",
    ),
    "the bound of a store": (
        "common/vectors.cuh",
        "if (i >= low && i < high) from_float(in[i], p + i);",
        "from_float(in[i], p + i);",
        r"out of bounds: write|race: write",
    ),
    "the bound of a load": (
        "common/vectors.cuh",
        "if (i >= low && i < high) vectors[i / kWidth]",
        "if (i >= low && i <= high) vectors[i / kWidth]",
        r"out of bounds: read",
    ),
    "the rows of a block": (
        "softmax/softmax.cuh",
        "  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists\n",
        "",
        r"out of bounds: read",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kernel_is_reported(race, name, tmp_path, monkeypatch):
    file, line, instead, report = BROKEN[name]
    csrc = shutil.copytree(host_build.ROOT / "csrc", tmp_path / "csrc")
    text = (csrc / file).read_text()
    assert text.count(line) == 1
    (csrc / file).write_text(text.replace(line, instead))
    # The broken kernels come first: of an inline function that they share with the others the linker takes theirs.
    others = [path for path in host_build.KERNELS if path.stem != "softmax"]
    monkeypatch.setattr(host_build, "KERNELS", [csrc / "softmax" / "softmax.cu", *others])
    module, emulator = host_module.load.__wrapped__("race")
    cuda.set_stand_in(module, emulator.watch)
    for seed in (1, 2, 3, 4):
        emulator.configure(seed)
        with pytest.raises(RuntimeError, match=report):
            for n_cols in (37, 601):
                torch.ops.fasttx.softmax_fwd(torch.randn(2, n_cols), None, None, 1.0, 0.0, False, "cuda")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("variant", ["race", "asan"])
def test_the_tests_of_the_ops_pass_in_every_variant(variant):
    environment = host_build.sanitizer_environment() if variant == "asan" else dict(os.environ)
    environment["FASTTX_EMULATOR"] = variant
    tests = [
        "tests/test_ops.py",
        "tests/ops/test_attention_cuda_fwd.py",
        "tests/ops/test_softmax.py",
        "tests/ops/test_dropout_add_layer_norm.py",
        "tests/ops/test_dropout_add_layer_norm_memory.py",
        "tests/ops/test_bias_gelu.py",
        "tests/ops/test_bias_gelu_memory.py",
        "tests/ops/test_embedding_layer_norm.py",
        "tests/ops/test_quantize_per_token.py",
        "tests/ops/test_add_layer_norm_quantize.py",
        "tests/ops/test_bias_gelu_quantize.py",
        "tests/ops/test_int8_linear.py",
        "tests/ops/test_int8_linear_cuda.py",
        "tests/ops/test_cross_entropy.py",
        "tests/ops/test_binary_cross_entropy.py",
        "tests/ops/test_kl_div.py",
        "tests/ops/test_linear_cross_entropy.py",
    ]
    chosen = "cuda and not 65536 and not 262144"  # their hooks take minutes, and other lengths have the same paths
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *tests, "-k", chosen]
    done = subprocess.run(command, cwd=host_build.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 80, done.stdout[-500:]


# ------------------------------------------------------------------------------------------------------- boundary


def arguments(name, **changed):
    """What softmax's launchers take, all of it harmless: they refuse before they launch."""
    module, _ = host_module.load("plain")
    without = {"mask.data": None, "rng_state": None}
    return host_module.altered(host_module.harmless(module, module.SIGNATURES[name]), without | changed)


@pytest.mark.parametrize("name", ["softmax_fwd", "softmax_bwd"])
@pytest.mark.parametrize(
    "changed, message",
    [
        ({"n_rows": 0}, "n_rows must lie in"),
        ({"n_cols": 2**31}, "n_cols must lie in"),
        ({"threshold": 257}, "threshold must lie in"),
        ({"mask.sizes": (1, 0, 1)}, "mask sizes must be positive"),
        ({"mask.data": (16, 7), "mask.dtype": 7}, "mask must be bool or of a float type"),
        ({"dtype": 3}, "tensors must be float32, float16 or bfloat16"),
        ({"rng_state": (16, 7), "log": True}, "log and dropout exclude each other"),
    ],
    ids=str,
)
def test_what_would_corrupt_memory_is_refused_again(name, changed, message):
    module, _ = host_module.load("plain")
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        getattr(module, name)(0, **arguments(name, **changed))


@pytest.mark.parametrize("name, written", [("softmax_fwd", "out"), ("softmax_bwd", "dx")])
def test_a_result_must_be_given(name, written):
    module, _ = host_module.load("plain")
    with pytest.raises(ValueError, match=f"{name}: .*must be given"):
        getattr(module, name)(0, **arguments(name, **{written: None}))
