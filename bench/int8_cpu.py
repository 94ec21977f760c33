"""int8 on this CPU, on one thread: the layer beside `torch._int_mm` alone, and MiniLM beside transformers.

    python -m bench.int8_cpu

Prints two Markdown tables of ratios, with the error of each arm. Arms take turns; the least CPU time of several counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fasttx
import fasttx.nn.functional as F
from fasttx.ops.availability import cpu_model
from fasttx.ops.cpu.launch import built_form

from . import corpus

LAYERS = [(512, 768, 3072), (512, 3072, 768), (16, 384, 1536), *((n, 384, 1536) for n in (32, 128, 512, 2048))]
"""Rows, in_features, out_features; GELU where the layer widens."""


def least(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The least CPU time of each call, of as many turns as take so long."""
    found, began = dict.fromkeys(calls, float("inf")), time.process_time()
    while time.process_time() - began < seconds:
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(4):
                call()
            found[name] = min(found[name], (time.process_time() - start) / 4)
    return found


def layer_row(n_rows: int, n_in: int, n_out: int, dtype: torch.dtype) -> str:
    """A layer's time in ours and in PyTorch's operators, as a multiple of `torch._int_mm`, and its error."""
    x = torch.randn(n_rows, n_in).to(dtype)
    weight, scale = F.quantize_per_channel(torch.randn(n_out, n_in) / n_in**0.5)
    bias, activation = torch.randn(n_out).to(dtype), "gelu" if n_out > n_in else "none"
    x_q, x_scale = F.quantize_per_token(x)

    def layer() -> Tensor:
        return F.int8_linear(x, weight, scale, bias, activation=activation)

    def composed() -> Tensor:
        with fasttx.backend("torch"):
            return layer()

    exact = (x_q.double() * x_scale[:, None]) @ (weight.double() * scale[:, None]).t() + bias
    exact = F.gelu(exact) if activation == "gelu" else exact
    errors = [float((out().double() - exact).norm() / exact.norm()) for out in (layer, composed)]
    times = least({"int_mm": lambda: torch._int_mm(x_q, weight.t()), "ours": layer, "torch": composed}, 4.0)
    cells = [f"{times[arm] / times['int_mm']:.2f} ({error:.0e})" for arm, error in zip(("ours", "torch"), errors)]
    shape = f"{n_rows} x {n_in} -> {n_out}, {str(dtype).removeprefix('torch.')}, {activation}"
    return f"| {shape} | {cells[0]} | {cells[1]} |"


def models() -> dict[str, nn.Module]:
    """MiniLM as transformers has it and in our forms."""
    from transformers import BertModel

    path = corpus.model_directory(None)
    own = BertModel.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()
    found = {"transformers fp32": own, "transformers bf16": copy.deepcopy(own).bfloat16()}
    for name, of in (("int8, fp32 around it", own), ("int8, bf16 around it", found["transformers bf16"])):
        found[name] = copy.deepcopy(of)
        fasttx.patch(found[name])
        fasttx.quantize(found[name])
    return found


def batches() -> dict[str, dict[str, Tensor]]:
    """Real sentences: of any length, of like length, one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus.model_directory(None))
    texts = [text for _, text in corpus.read_corpus(corpus.TEXTS / "dev.txt")]
    texts = [part for text in texts for part in text.split(". ") if len(part) > 20]
    alike = sorted(texts, key=len)
    middle = len(alike) // 2
    chosen = {"ragged": texts[:32], "of like length": alike[middle : middle + 32], "one sentence": alike[middle:][:1]}
    return {
        name: dict(tokenizer(some, padding=True, truncation=True, max_length=256, return_tensors="pt"))
        for name, some in chosen.items()
    }


def embedding(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    mask = batch["attention_mask"][..., None]
    return nn.functional.normalize((model(**batch).last_hidden_state.float() * mask).sum(1), dim=-1)


def model_rows(name: str, batch: dict[str, Tensor], arms: dict[str, nn.Module]) -> list[str]:
    """Each arm's speed as a multiple of transformers' in float32, with the mean and the least cosine to it."""
    first = next(iter(arms))
    wanted = embedding(arms[first], batch)
    times = least({arm: lambda model=model: model(**batch) for arm, model in arms.items()}, 12.0)
    rows = []
    for arm, model in arms.items():
        cosine = (embedding(model, batch) * wanted).sum(-1)
        rows.append(f"| {name} | {arm} | {times[first] / times[arm]:.2f} | {cosine.mean():.4f}, {cosine.min():.4f} |")
    return rows


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{cpu_model()}, one thread, torch {torch.__version__}, fasttx._C_cpu: {built_form() or 'not built'}\n")
    with torch.inference_mode():
        print("| int8_linear of floats: time / that of _int_mm (error) | auto | PyTorch's operators |\n|---|---|---|")
        for shape in LAYERS:
            print(layer_row(*shape, torch.float32), flush=True)
        print(layer_row(*LAYERS[0], torch.bfloat16), flush=True)
        print("\n| batch | model | times as fast as transformers fp32 | cosine to it: mean, least |\n|---|---|---|---|")
        arms = models()
        for name, batch in batches().items():
            real, size = int(batch["attention_mask"].sum()), tuple(batch["input_ids"].shape)
            print("\n".join(model_rows(f"{name}, {size}, {real} tokens", batch, arms)), flush=True)


if __name__ == "__main__":
    main()
