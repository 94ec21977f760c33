"""How many Python functions and PyTorch operators a step of a patched model calls, on what it takes for a GPU.

Run as a script it prints a line of JSON for each case. Numbers hang on the versions of torch and transformers, and on
nothing else: not on widths, nor on the machine.
"""

from __future__ import annotations

import collections
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pretend_gpu

pretend_gpu.switch_on()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from transformers import BertConfig, BertForMaskedLM  # noqa: E402

import fasttx  # noqa: E402

LAYERS = 12


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operators(step: Callable[[], Any]) -> collections.Counter[str]:
    """How often each operator is dispatched."""
    with _Operators() as counted:
        step()
    return counted.found


def python_calls(step: Callable[[], Any]) -> collections.Counter[tuple[str, str]]:
    """How often each Python function is called, by its file and name."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code.co_filename, frame.f_code.co_name] += 1

    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    found = BertForMaskedLM(config).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fasttx.patch(found, **options)
    return found


def batch(lengths: list[int]) -> dict[str, Any]:
    ids = torch.randint(5, 64, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.where(mask & (torch.rand(ids.shape) < 0.3), ids, -100)
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": labels}


def cases() -> dict[str, tuple[Any, Callable[[], Any]]]:
    """A model and a step of it."""
    lengths = [32, 9, 20, 14]
    data = batch(lengths)
    counts = tuple((data["labels"] != -100).sum(-1).tolist())
    unlabelled = {name: value for name, value in data.items() if name != "labels"}
    padded, packed = model(unpad=False), model()
    still = model(unpad=False).eval(), model().eval()

    def train(which: Any, **more: Any) -> Callable[[], Any]:
        def step() -> None:
            which(**data, **more).loss.backward()

        return step

    def infer(which: Any, **more: Any) -> Callable[[], Any]:
        def step() -> None:
            with torch.no_grad():
                which(**unlabelled, **more)

        return step

    return {
        "training, padded": (padded, train(padded)),
        "training, padding-free": (packed, train(packed, seq_lens=tuple(lengths), label_counts=counts)),
        "inference, padded": (still[0], infer(still[0])),
        "inference, padding-free": (still[1], infer(still[1], seq_lens=tuple(lengths))),
    }


def counts(model: Any, step: Callable[[], Any]) -> dict[str, Any]:
    """Of a call as it comes after others, which fill what is remembered; gradients are None before it."""
    found: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in (lambda step: step(), lambda step: step(), python_calls, operators):
            model.zero_grad(set_to_none=True)
            found.append(count(step))
    calls, dispatched = found[2:]
    ours = sum(n for (file, _), n in calls.items() if "/fasttx/" in file)
    return {"python": calls.total(), "fasttx": ours, "operators": dispatched.total(), "calls": calls, "ops": dispatched}


def main() -> None:
    """JSON of all cases, or with the name of one, what it calls most."""
    for name, (model, step) in cases().items():
        found = counts(model, step)
        calls, ops = found.pop("calls"), found.pop("ops")
        print(json.dumps({"case": name, **found, "ops": ops}))
        if name in sys.argv[1:]:
            for (file, function), n in calls.most_common(75):
                print(f"{n:6d}  {'/'.join(file.split('/')[-3:])}:{function}", file=sys.stderr)


if __name__ == "__main__":
    main()
