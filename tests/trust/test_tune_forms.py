"""Forms of the same of PyTorch's operators: what a table says is what runs, eagerly and compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fasttx
import fasttx.functional as ours
from bench import form_arms, tuning
from fasttx.functional import _cross_entropy, _linear_cross_entropy
from fasttx.ops import dispatch, tuned
from fasttx.ops.attention.cpu import parts
from fasttx.ops.decisions import recorded
from fasttx.ops.forms import (
    AGAIN,
    DROPOUT,
    FORMS,
    FUNCTION,
    JOINT,
    KEPT,
    KEY_MASK,
    LOGITS,
    OURS,
    PACKED,
    PADDED,
    PADDING,
    QKV,
    SEPARATE,
    SLICED,
    TORCHS,
    WHOLE,
    WIDE,
    Form,
    questions,
)
from fasttx.ops.tuned import Measured
from fasttx.trust import tune

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FASTTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(tuned.SWITCH, raising=False)
    tuned.forget()
    yield
    tuned.forget()


def say(form: Form, option: str, default: str, *regimes: str, dtype: str = "float32") -> None:
    """Writes a table in which a form takes an option in these regimes, or in all."""
    found = Measured(option, default, form.own, {option: 2.0, default: 1.0}, {}, {}, False)
    tune.write(CPU, {f"{form.name}/{dtype}/{regime}": found for regime in regimes or form.all()})
    tuned.forget()


# ------------------------------------------------------------------------------------------------------- what is asked

ON_CPU = [(form.name, regime) for form in FORMS.values() if "cpu" in form.on for regime in form.all()]
LARGE = {("encoder:qkv", "more tokens"), ("cross_entropy:wide", "more logits"), ("cross_entropy:wide", "to 32M logits")}
LARGE |= {("linear_cross_entropy:logits", regime) for regime in LOGITS.all()}
LARGE |= {("attention:dropout", "more scores"), ("encoder:padding", "saves more")}


@pytest.mark.parametrize(
    "name, regime",
    [pytest.param(*each, marks=[pytest.mark.slow] if each in LARGE else []) for each in ON_CPU],
)
def test_what_is_timed_asks_the_form_in_its_regime_and_runs_the_option(name: str, regime: str) -> None:
    form = FORMS[name]
    arm = form_arms.arm_of(form, torch.float32, regime, CPU)
    for option in form.options:
        with tuned.taking(name, CPU, torch.float32, option, form.all()), questions() as asked:
            arm.run()
    assert regime in [question.regime for question in asked if question.form == name]


def test_every_form_has_calls() -> None:
    assert set(form_arms._MAKE) == set(FORMS)


@pytest.mark.parametrize("name", ["attention:key_mask", "attention:dropout", "encoder:padding", "encoder:qkv"])
def test_a_form_is_measured_and_each_way_is_right(name: str) -> None:
    form = FORMS[name]
    regime = min(form.all(), key=lambda regime: form.all()[regime])
    found = tuning.measure(f"{name}/float32/{regime}", CPU, True, {}, lambda _: None)
    assert set(found["times"]["plain"]) == set(form.options) and not found["left_out"]
    assert found["default"] in form.options and found["own"] == form.options[0]


def test_a_form_that_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside PyTorch's own way, whose error is what is allowed."""
    arm, option = form_arms.arm_of, SLICED

    def broken(*given: Any, **more: Any) -> form_arms.Arm:
        made = arm(*given, **more)
        run = made.run
        made.run = lambda: run() * (1.1 if KEY_MASK.takes(made.leaves[0], "", 300) == option else 1.0)
        return made

    monkeypatch.setattr(tuning, "arm_of", broken)
    found = tuning.measure("attention:key_mask/float32/saves to 500", CPU, True, {}, lambda _: None)
    assert "is off by" in found["left_out"][option] and option not in found["times"]["plain"]


# ------------------------------------------------------------------------------------------------------------ obeyed


def test_products_of_query_key_and_value() -> None:
    config = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**config, vocab_size=50, attn_implementation="sdpa")).eval()
    ids = torch.arange(20).view(2, 10)
    assert "one product" not in str([*_parts(copy.deepcopy(model), ids)])
    say(QKV, JOINT, SEPARATE, "to 256 tokens")
    patched = copy.deepcopy(model)
    report = fasttx.patch(patched)
    found = [each for each in _decisions(patched, ids) if each.what == "query, key, value"]
    assert [(each.choice, each.reason) for each in found] == [
        ("one product", "measured on this machine: 2.00 times as fast as three products")
    ]
    torch.testing.assert_close(patched(ids).last_hidden_state, model(ids).last_hidden_state)
    item = "encoder:qkv/float32/to 256 tokens"
    assert report.tuned == {"cpu": {item: "one product in place of three products, 2.00 times as fast"}}
    assert report.to_dict()["tuned"] == report.tuned and f"{item}: one product" in " ".join(str(report).split())
    assert any(row.here for row in report.replaced if row.after == "one product")
    torch._dynamo.reset()
    compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
    with recorded() as decisions:
        torch.testing.assert_close(compiled(ids).last_hidden_state, model(ids).last_hidden_state)
    assert ("query, key, value", "one product") in [(each.what, each.choice) for each in decisions]
    many = torch.zeros(2, 200, dtype=torch.long)
    assert ("query, key, value", "one product") not in [(e.what, e.choice) for e in _decisions(patched, many)]


def _decisions(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> list[Any]:
    with recorded() as decisions, torch.no_grad():
        model(ids, attention_mask=mask)
    return decisions


def _parts(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Iterator[tuple[str, str, str]]:
    fasttx.patch(model)
    for each in _decisions(model, ids, mask):
        yield each.what, each.choice, each.reason


def test_padding() -> None:
    from transformers import BertConfig, BertModel

    config = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(**config, vocab_size=50, attn_implementation="sdpa")).eval()
    ids, mask = torch.arange(20).view(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[1, 5:] = 0
    ids[1, 5:] = 0
    assert ("padded batch", "padded", "too little padding for packing to pay") in [
        *_parts(copy.deepcopy(model), ids, mask)
    ]
    say(PADDING, PACKED, PADDED, "saves to 10M")
    assert "real tokens only" in [choice for _, choice, _ in _parts(copy.deepcopy(model), ids, mask)]
    tuned.table_path(CPU).unlink()
    say(PADDING, PADDED, PACKED, "saves more")
    wide = torch.full((16, 128), 7)
    half = (torch.arange(128) < torch.linspace(2, 128, 16).long()[:, None]).long()
    found = PADDING.takes(torch.empty(1), PACKED, 400_000_000)
    assert found == PADDED and PADDING.takes(torch.empty(1), PACKED, 60_000_000) == PACKED
    ids = wide.where(half.bool(), 0)
    patched = [*_parts(copy.deepcopy(model), ids, half)]
    assert "real tokens only" in [choice for _, choice, _ in patched], "another regime"


def launches(call: Any) -> dict[tuple[str, str], int]:
    before = dispatch.LAUNCHES.copy()
    call()
    return dict(dispatch.LAUNCHES - before)


def test_the_loss_of_wide_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cross_entropy, "WORTH_IT_ON_CPU", (1 << 13, 1024))
    wide, small = torch.randn(8, 2048), torch.randn(2, 2048)
    target = torch.arange(8)
    assert launches(lambda: ours.cross_entropy(wide, target)) and not launches(
        lambda: ours.cross_entropy(small, target[:2])
    )
    say(WIDE, OURS, TORCHS)
    assert launches(lambda: ours.cross_entropy(small, target[:2])) and launches(
        lambda: ours.cross_entropy(wide, target)
    )
    assert not launches(lambda: ours.cross_entropy(torch.randn(8, 9), target)), "rows of few classes have no choice"
    tuned.table_path(CPU).unlink()
    say(WIDE, TORCHS, OURS)
    with recorded() as decisions:
        assert not launches(lambda: ours.cross_entropy(wide, target))
    assert decisions[0].reason == "measured on this machine: 2.00 times as fast as fasttx's op"


def test_the_logits_of_labelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, target = torch.randn(4, 8, requires_grad=True), torch.randn(50, 8), torch.arange(4)

    def call() -> Any:
        return ours.linear_cross_entropy(x, weight, target)

    assert not launches(call), "the logits are kept by PyTorch's own functions"
    say(LOGITS, AGAIN, KEPT)
    assert launches(call)
    torch.testing.assert_close(call(), F.cross_entropy(F.linear(x, weight), target))
    tuned.table_path(CPU).unlink()
    say(LOGITS, KEPT, AGAIN)
    monkeypatch.setattr(_linear_cross_entropy, "KEPT_ON_CPU", 100)
    assert launches(call), "no measurement makes it keep more than memory allows"


def _masked(masked: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(2, 2, 40, 32) for _ in range(3))
    return q, k, v, (torch.arange(40) < 40 - masked).expand(2, 1, 1, 40)


def test_attention_with_masked_keys() -> None:
    q, k, v, mask = _masked(10)  # 320 of 2000

    def call() -> Any:
        return ours.scaled_dot_product_attention(q, k, v, mask)

    expected = F.scaled_dot_product_attention(q, k, v, mask)
    assert not launches(call)
    say(KEY_MASK, SLICED, WHOLE, "saves to 500")
    assert launches(call) == {("attention_fwd", "torch"): 1}
    torch.testing.assert_close(call(), expected)
    assert parts.worth_slicing(q.transpose(1, 2), 20) and not parts.worth_slicing(q.transpose(1, 2), 40)
    tuned.table_path(CPU).unlink()
    say(KEY_MASK, WHOLE, SLICED, "saves more")
    assert not parts.worth_slicing(torch.randn(1, 600, 2, 32), 500), "16,000 of 2,000"


def test_attention_with_dropout() -> None:
    q, k, v, _ = _masked(0)

    def call() -> Any:
        return ours.scaled_dot_product_attention(q, k, v, None, 0.1)

    assert not launches(call)
    say(DROPOUT, OURS, TORCHS, "to 100k scores")
    assert launches(call) == {("attention_fwd", "torch"): 1}
    assert not launches(lambda: ours.scaled_dot_product_attention(q.half(), k.half(), v.half(), None, 0.1))


def test_pytorchs_attention_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the op has a kernel; what PyTorch's function cannot do stays with the op."""
    from types import SimpleNamespace

    from fasttx.functional.attention import routes
    from fasttx.ops.attention.call import AttentionCall

    gpu = torch.device("cuda", 0)
    x = SimpleNamespace(device=gpu, dtype=torch.bfloat16, shape=(4, 512, 12, 64))
    monkeypatch.setattr(routes, "has_kernel", lambda *_: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(tuned, "_tables", {gpu: {}})
    regime = "to 512 tokens, head_dim to 64, no mask, dropout"
    overrides = {(FUNCTION.name, torch.bfloat16): {regime: TORCHS}}
    found = Measured(TORCHS, OURS, TORCHS, {TORCHS: 1.5, OURS: 1.0}, {}, {}, False)
    monkeypatch.setattr(tuned, "_overrides", {gpu: {}})

    def why(**call: Any) -> str | None:
        return routes._why_torch_is_better(x, x, x, AttentionCall(**call), "auto", None)  # type: ignore[arg-type]

    assert why(dropout_p=0.1) is None
    monkeypatch.setattr(tuned, "_overrides", {gpu: overrides})
    monkeypatch.setattr(tuned, "_tables", {gpu: {f"{FUNCTION.name}/bfloat16/{regime}": found}})
    assert why(dropout_p=0.1) == "measured on this machine: 1.50 times as fast as fasttx's op"
    assert why() is None and why(dropout_p=0.1, seqused_k=x) is None and why(dropout_p=0.1, window_left=3) is None
    assert routes._why_torch_is_better(x, x, x, AttentionCall(dropout_p=0.1), "triton", None) is None  # type: ignore[arg-type]


def test_autocast_goes_by_the_dtype_in_which_products_run() -> None:
    say(QKV, JOINT, SEPARATE, dtype="bfloat16")
    x = torch.randn(3, 4)
    assert QKV.takes(x, SEPARATE, 3) == SEPARATE and QKV.takes(x.bfloat16(), SEPARATE, 3) == JOINT
    with torch.autocast("cpu", torch.bfloat16):
        assert QKV.takes(x, SEPARATE, 3) == JOINT
        assert WIDE._dtype_of(x) == torch.float32, "a loss is computed in float32"
