"""GELU and its derivative on every number of bfloat16 and float16, and on a dense sample of float32, against float64.

The rule of fasttx.testing judges rows; here each number is judged by itself, in float32 from end to end. On a GPU exp2
is an instruction with an error of up to 2^-22 of its own, which the bounds leave room for.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's: exponentials of infinities
fwd = torch.ops.fasttx.bias_gelu_fwd.default
bwd = torch.ops.fasttx.bias_gelu_bwd.default
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
each_written = pytest.mark.parametrize("backend", ["triton", "cuda"])
# docs/numerics.md states them
ABSOLUTE = 3e-7
"""Of GELU beside max(|z|, 1), and of its derivative."""
RELATIVE, MIDDLE, TAIL = 5e-7, 5e-6, 1e-4
"""Of GELU for z >= -1, down to -5, and down to LAST."""
LAST = -10.0


def all_halves(dtype: torch.dtype) -> torch.Tensor:
    """Every number of a dtype of 16 bits, NaNs and infinities too."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def sample() -> torch.Tensor:
    """Of float32: 16 numbers of each exponent and sign, and steps of 1/4096 from -16 to 16."""
    exponents = torch.arange(255, dtype=torch.int64)[:, None] << 23
    digits = torch.linspace(0, 2**23 - 1, 16).round().to(torch.int64)[None, :]
    bits = (exponents | digits).flatten().to(torch.int32).view(FP32)
    return torch.cat([bits, -bits, torch.arange(-16 * 4096, 16 * 4096 + 1) / 4096.0])


NUMBERS = {"bfloat16": lambda: all_halves(BF16).float(), "float16": lambda: all_halves(FP16).float(), "float32": sample}
each_set = pytest.mark.parametrize("numbers", NUMBERS)


def reference(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU and its derivative in float64; for z < 0 by erfc, which keeps the tail."""
    exact = z.double()
    phi = 0.5 * torch.special.erfc(-exact * math.sqrt(0.5))
    return exact * phi, phi + exact * torch.exp(-0.5 * exact * exact) / math.sqrt(2.0 * math.pi)


def results(backend: str, z: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU and its derivative by a backend, as float64 on the CPU."""
    x = z.to(device)[None, :]
    out = fwd(x, None, None, None, 0.0, False, backend)
    dx, _ = bwd(torch.ones_like(x), x, None, None, None, 0.0, False, True, False, backend)
    return out[0].cpu().double(), dx[0].cpu().double()


@each_set
@each_written
def test_every_number(device, backend, numbers):
    z = NUMBERS[numbers]()
    out, dx = results(backend, z, device)
    ref, dref = reference(z)
    finite = z.isfinite()
    assert torch.equal(out[~finite].isnan(), ref[~finite].isnan())  # as PyTorch's: NaN of NaN and of -inf
    assert torch.equal(out[z == math.inf], ref[z == math.inf])
    assert dx[~finite].isnan().all()
    z, out, dx, ref, dref = (t[finite] for t in (z, out, dx, ref, dref))
    size = z.double().abs()
    assert out.isfinite().all() and dx.isfinite().all()
    error, derror = (out - ref).abs(), (dx - dref).abs()
    least = 2.0**-149  # a subnormal result is rounded to a multiple of it
    relative = (error - least).clamp(min=0.0) / ref.abs().clamp(min=least)
    found = {
        "absolute": (error / size.clamp(min=1.0)).max(),
        "derivative": derror.max(),
        "relative": relative[z >= -1.0].max(),
        "middle": relative[z >= -5.0].max(),
        "tail": relative[z >= LAST].max(),
    }
    print(backend, numbers, {name: f"{float(value):.2e}" for name, value in found.items()})
    assert found["absolute"] <= ABSOLUTE and found["derivative"] <= ABSOLUTE, found
    assert found["relative"] <= RELATIVE and found["middle"] <= MIDDLE and found["tail"] <= TAIL, found
    beyond = z < LAST
    assert out[beyond].abs().max() <= 1e-22 and (out[beyond] <= 0.0).all()  # Q(10) is 8e-24
    assert torch.equal(torch.signbit(out), torch.signbit(z))  # of -0.0 too


@each_written
def test_small_numbers_are_halved(device, backend):
    """Down to the smallest subnormal, as far as float32 can: 1/2 z, where z / sqrt(2 pi) is lost beside 1/2."""
    z = torch.tensor([2.0**-n for n in range(26, 149)] + [0.0])
    for sign in (1.0, -1.0):
        out, dx = results(backend, sign * z, device)
        assert torch.equal(out, sign * z.double() / 2) and torch.equal(dx, torch.full_like(dx, 0.5))


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@each_written
def test_halves_are_the_rounded_reference(device, backend, dtype):
    """Every number of the dtype from the last that is judged in the tail: one rounding, and float32's error of it."""
    x = all_halves(dtype)
    x = x[x.isfinite() & (x >= LAST)].to(device)[None, :]
    out = fwd(x, None, None, None, 0.0, False, backend)[0].cpu().double()
    ref = reference(x[0].cpu())[0]
    step = torch.finfo(dtype).eps / 2 * ref.abs().clamp(min=torch.finfo(dtype).smallest_normal)
    assert ((out - ref).abs() <= step * 1.001 + TAIL * ref.abs()).all()
    near = x[0].cpu() >= -1.0
    assert ((out - ref).abs() <= step * 1.001 + RELATIVE * ref.abs())[near].all()


def numbers_of(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]


def test_both_languages_have_the_polynomial_that_the_script_finds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "scripts"))
    import gelu_polynomial

    found = [float(str(c)) for c in gelu_polynomial.coefficients()]
    python = (ROOT / "kernels" / "gelu.py").read_text()
    body = python[python.index("def _log2_tail(a)") : python.index("def _normal_cdf")]
    assert numbers_of(body)[::-1] == found
    cuda = (ROOT / "csrc" / "common" / "gelu.cuh").read_text()
    assert numbers_of(cuda[cuda.index("kLog2Tail[] = {") : cuda.index("};", cuda.index("kLog2Tail[]"))]) == found
    sys.modules.pop("gelu_polynomial", None)


def test_the_exponent_falls_to_minus_infinity():
    """Beyond LAST the polynomial is no approximation, but GELU must vanish there."""
    python = (ROOT / "kernels" / "gelu.py").read_text()
    body = python[python.index("def _log2_tail(a)") : python.index("def _normal_cdf")]
    highest_first = numbers_of(body)
    value = torch.zeros(100001, dtype=torch.float64)
    a = torch.linspace(0.0, 1000.0, 100001, dtype=torch.float64)
    for coefficient in highest_first:
        value = value * a + coefficient
    assert (value.diff() < 0.0).all() and highest_first[0] < 0.0
