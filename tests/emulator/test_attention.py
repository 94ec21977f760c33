"""Attention's forward by mma.sync with a hook at each access: no race, nothing outside, one result in any order."""

from __future__ import annotations

import host_build
import host_module
import pytest
import torch

pytest.importorskip("triton", reason="the cases are those of the Triton kernels")

from ops.attention_cases import Case, check_forward, make_inputs, run_forward

from fasttx.ops.attention import cuda as attention
from fasttx.ops.attention.cuda import attention_fwd

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
BF16, F16 = torch.bfloat16, torch.float16
SEEDS = (1, 2, 3)  # odd ones run a warp as far as it gets, even ones switch at random

# Each fills either stage of K and V twice. Copies past the registers and by single elements; a ragged end of everything
CASES = {
    "padded": Case(40, 270, 1, dim=64, dim_v=64, dtype=BF16, aligned=True),
    "single-elements": Case(40, 140, 1, 2, 2, dim=40, dim_v=36, dtype=F16, dropout_p=0.2),
    "large-head": Case(70, 140, 1, dim=200, dim_v=256, dtype=BF16, aligned=True),
    "key-mask": Case(130, 200, 2, mask="key-bool", dtype=BF16, aligned=True),
    "causal-bias": Case(130, 200, 1, window=(-1, 0), mask="full-add", dtype=F16, aligned=True),
    "packed": Case(heads=2, lengths=((33, 150), (0, 5), (140, 64), (5, 0)), dropout_p=0.3, dtype=BF16, aligned=True),
}


@pytest.fixture(autouse=True)
def form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FORM", 80)


@pytest.mark.parametrize("name", CASES)
def test_no_race(race: host_module.Emulator, name: str) -> None:
    case = CASES[name]
    for seed in SEEDS:
        race.configure(seed)
        check_forward(attention_fwd, case, torch.device("cpu"))
    q, k, v, _, args = make_inputs(case, torch.device("cpu"))
    results = []
    for seed in SEEDS:
        race.configure(seed)
        results.append(run_forward(attention_fwd, q, k, v, args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), "the order of threads shows"


@pytest.mark.slow
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 192, 256])
def test_no_race_in_long_rows(race: host_module.Emulator, dim: int) -> None:
    for seed, dropout_p in ((5, 0.0), (6, 0.1)):
        race.configure(seed)
        case = Case(300, 520, 1, dim=dim, dim_v=dim, dropout_p=dropout_p, dtype=BF16, aligned=True)
        check_forward(attention_fwd, case, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------- boundary


def arguments(**changed):
    """What the launcher takes, all of it harmless: it refuses before it launches."""
    module, _ = host_module.load("plain")
    given = host_module.harmless(module, module.SIGNATURES["attention_fwd"])
    right = {
        "dtype": module.DTYPES["bfloat16"],
        "shape.attn_bias": None,
        "shape.rng_state": None,
        "shape.threshold": 0,
        "form": 80,
    }
    return module, host_module.altered(given, right | changed)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"shape.num_heads_k": 0}, "num_heads_k must lie in 1 .. num_heads, and divide it"),
        ({"shape.num_heads": 3, "shape.num_heads_k": 2}, "num_heads_k must lie in 1 .. num_heads, and divide it"),
        ({"dtype": 0}, "tensors must be float16 or bfloat16"),
        ({"shape.head_dim": 257}, "head_dim and head_dim_v must lie in 1 .. 256"),
        ({"shape.head_dim_v": 0}, "head_dim and head_dim_v must lie in 1 .. 256"),
        ({"shape.batch": 0}, "batch and max_seqlen_q must be at least 1"),
        ({"shape.max_seqlen_k": -1}, "max_seqlen_k at least 0"),
        ({"shape.max_seqlen_q": 2**29}, r"lengths below 2\^29"),
        ({"shape.max_seqlen_q": 2**28, "shape.batch": 2**11}, r"tiles of queries times heads must lie below 2\^31"),
        ({"shape.total_q": 2**31}, r"total_q and total_k must lie below 2\^31"),
        ({"shape.cu_seqlens_k": None}, "cu_seqlens_q and cu_seqlens_k must be given together"),
        ({"shape.attn_bias": (16, 6), "shape.bias_dtype": 6}, "attn_bias must be bool or of a float type"),
        ({"shape.window_left": -1}, r"window_left and window_right must lie in 0 .. 2\^29"),
        ({"shape.rng_state": (16, 7)}, "threshold must lie in 1 .. 255 with rng_state, and be 0 without"),
        ({"shape.threshold": 26}, "threshold must lie in 1 .. 255 with rng_state, and be 0 without"),
        ({"form": 1}, "form must be 0, 80 or 90"),
        ({"q": None}, "out, softmax_lse and q must be given"),
        ({"v": None}, "k and v must be given"),
    ],
    ids=str,
)
def test_what_would_corrupt_memory_is_refused_again(changed, message):
    module, given = arguments(**changed)
    with pytest.raises(ValueError, match=f"attention_fwd: .*{message}"):
        module.attention_fwd(0, **given)
