"""Host cost: of an op call and its parts, of drop-ins beside torch's functions, of a patched layer, of the import.

    python -m bench.host [--out FILE]

Inputs are so small that arithmetic takes next to no time: what is measured is Python, dispatcher and autograd.  Each
figure is the first quartile of many interleaved batches, wall-clock, on one thread: what the code costs where nothing
else takes the core from it.  On a GPU that is the time of the host, launches included.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx
import fasttx.nn.functional as fasttx_functional
from fasttx.ops import OPS
from fasttx.ops.cases import case
from fasttx.ops.dispatch import as_tuple
from fasttx.ops.registry import Op

from .accuracy import call_op
from .environment import device_of
from .options import parser_of
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .table import write
from .timer import Call, interleaved, synchronize

Row = dict[str, Any]


def _calls_of(op: Op, device: torch.device) -> dict[str, Call]:
    """The parts of a forward call, from the bare computation to the autograd Function's pair of calls."""
    args = case(op, "smallest", device, torch.float32)
    backend = "torch" if device.type == "cpu" else "triton"
    keys = op.fwd.key_tensors(args)
    fwd = getattr(torch.ops.fasttx, f"{op.name}_fwd").default
    calls: dict[str, Call] = {
        "check": lambda _: op.fwd.check(*args),
        "choice of the backend": lambda _: op.choice(backend, *keys),
        "allocation": lambda _: op.fwd.fake(*args),
        "op, forward": lambda _: fwd(*args, backend),
    }
    if device.type == "cpu":
        calls["bare composition, forward"] = lambda _: op.fwd.torch(*args)
    return calls if op.bwd is None else calls | _calls_with_backward(op, args, device, backend)


def _calls_with_backward(op: Op, args: Sequence[Any], device: torch.device, backend: str) -> dict[str, Call]:
    fwd = getattr(torch.ops.fasttx, f"{op.name}_fwd").default
    bwd = getattr(torch.ops.fasttx, f"{op.name}_bwd").default
    composed_bwd = op.directions["bwd"].torch
    outputs = call_op(op, "fwd", args, backend)
    back = op.backward_arguments(args, outputs, torch.ones_like(outputs[0]))
    saved = {place: i for place, given in enumerate(back) for i, out in enumerate(outputs) if given is out}

    def backward_arguments(ctx: Any, dout: Tensor) -> list[Any]:
        """As a Function puts them together: no name is looked up at a call."""
        found = ctx.saved_tensors[1:]
        return [dout, *(found[saved[i]] if i in saved else back[i] for i in range(1, len(back)))]

    class Plain(torch.autograd.Function):
        """What an op costs that is not in the table: no schema, no check, no choice."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
            outs = as_tuple(op.fwd.torch(x, *rest))
            ctx.save_for_backward(x, *outs)
            return outs[0]

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
            grads = as_tuple(composed_bwd(*backward_arguments(ctx, dout)))
            return (grads[0], *(None for _ in args[1:]))

    class Ours(torch.autograd.Function):
        """The same Function over the operators."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
            outs = as_tuple(fwd(x, *rest, backend))
            ctx.save_for_backward(x, *outs)
            return outs[0]

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
            grads = as_tuple(bwd(*backward_arguments(ctx, dout), backend))
            return (grads[0], *(None for _ in args[1:]))

    def with_grad(function: type[torch.autograd.Function]) -> Call:
        x = args[0].detach().requires_grad_()

        def step(_: int) -> None:
            out = function.apply(x, *args[1:])
            out.backward(torch.ones_like(out))
            x.grad = None

        return step

    calls: dict[str, Call] = {"op, backward": lambda _: bwd(*back, backend)}
    if device.type == "cpu" and args[0].is_floating_point():  # ids have no gradient: another Function sums the tables'
        calls |= {
            "forward and backward, Function over the op": with_grad(Ours),
            "forward and backward, plain Function": with_grad(Plain),
        }
    return calls


def op_rows(device: torch.device, rounds: int) -> list[Row]:
    """Microseconds a call of every op, its parts, and what the table adds to a plain autograd.Function."""
    rows = []
    for op in OPS.values():
        timings = interleaved(_calls_of(op, device), device, rounds=rounds, batch_ms=1.0)
        found = {name: (t.low if device.type == "cpu" else t.wall) * 1e3 for name, t in timings.items()}
        if device.type == "cpu":
            found["added to a forward call by the table"] = found["op, forward"] - found["bare composition, forward"]
            through_table, plain = "forward and backward, Function over the op", "forward and backward, plain Function"
            if through_table in found:
                found["added to forward and backward by the table"] = found[through_table] - found[plain]
        rows += [{"what": op.name, "part": part, "us": us} for part, us in found.items()]
    return rows


def _wall(calls: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Microseconds a call, first quartile, interleaved, host time up to the synchronisation."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for i in range(rounds):
        for name in list(calls) if i % 2 == 0 else reversed(list(calls)):
            synchronize(device)
            start = time.perf_counter()
            calls[name]()
            synchronize(device)
            times[name].append((time.perf_counter() - start) * 1e6)
    return {name: sorted(values)[len(values) // 4] for name, values in times.items()}


def function_rows(device: torch.device, rounds: int) -> list[Row]:
    """Microseconds a call of a drop-in beside torch's function, on a handful of elements, as a user calls it."""
    x = torch.randn(2, 8, device=device, requires_grad=True)
    q = torch.randn(1, 1, 4, 16, device=device, requires_grad=True)
    labels, ones = torch.tensor([3, 5], device=device), torch.ones(2, 8, device=device)
    calls: dict[str, Callable[[Any], Tensor]] = {
        "softmax": lambda functions: functions.softmax(x, -1),
        "layer_norm": lambda functions: functions.layer_norm(x, (8,)),
        "gelu": lambda functions: functions.gelu(x),
        "cross_entropy": lambda functions: functions.cross_entropy(x, labels),
        "binary_cross_entropy_with_logits": lambda functions: functions.binary_cross_entropy_with_logits(x, ones),
        "kl_div": lambda functions: functions.kl_div(x, ones, reduction="batchmean"),
        "scaled_dot_product_attention": lambda functions: functions.scaled_dot_product_attention(q, q, q),
    }

    def forward(call: Callable[[Any], Tensor], functions: Any) -> Call:
        def step(_: int) -> None:
            with torch.no_grad():
                call(functions)

        return step

    def both(call: Callable[[Any], Tensor], functions: Any) -> Call:
        def step(_: int) -> None:
            out = call(functions)
            torch.autograd.grad(out, (x, q), torch.ones_like(out), allow_unused=True)

        return step

    rows = []
    for name, call in calls.items():
        for part, make in (("forward", forward), ("forward and backward", both)):
            pair = {"fasttx": make(call, fasttx_functional), "torch": make(call, torch.nn.functional)}
            timings = interleaved(pair, device, rounds=rounds, batch_ms=1.0)
            found = {whose: (t.low if device.type == "cpu" else t.wall) * 1e3 for whose, t in timings.items()}
            rows += [{"what": f"function {name}", "part": f"{part}, {whose}", "us": us} for whose, us in found.items()]
    return rows


def layer_rows(device: torch.device, rounds: int) -> list[Row]:
    """A layer of 768 (12 heads) on 8 tokens: patched, and transformers' own with sdpa; inference and training."""
    from transformers import BertConfig, BertModel

    config = BertConfig(num_hidden_layers=2, vocab_size=99, attn_implementation="sdpa")
    torch.manual_seed(0)
    plain = BertModel(config).to(device)
    patched = BertModel(config).to(device)
    patched.load_state_dict(plain.state_dict())
    fasttx.patch(patched)
    ids = torch.randint(5, 99, (2, 8), device=device)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids = ids * mask

    def inference(model: nn.Module) -> Callable[[], object]:
        layer = model.encoder.layer[0]
        hidden = torch.randn(1, 8, 768, device=device)
        return lambda: layer(hidden)

    def whole(model: nn.Module) -> Callable[[], object]:
        return lambda: model(input_ids=ids, attention_mask=mask)

    def training(model: nn.Module) -> Callable[[], object]:
        return lambda: model(input_ids=ids, attention_mask=mask).last_hidden_state.sum().backward()

    rows = []
    for what, make, grad in (
        ("layer of 768, 8 tokens, inference", inference, False),
        ("model of 2 layers, padded 2x8, inference", whole, False),
        ("model of 2 layers, padded 2x8, forward and backward", training, True),
    ):
        for model in (plain, patched):
            model.train(grad)
        with torch.set_grad_enabled(grad):
            found = _wall({"transformers (sdpa)": make(plain), "patched": make(patched)}, device, rounds)
        rows += [{"what": what, "part": part, "us": us} for part, us in found.items()]
        rows.append(
            {"what": what, "part": "patched / transformers", "ratio": found["patched"] / found["transformers (sdpa)"]}
        )
    return rows


def import_rows(rounds: int) -> list[Row]:
    """Time of `import torch` and of `import torch, fasttx.nn`, with all that a first call needs, each in a process."""
    times: dict[str, list[float]] = {"torch": [], "torch, fasttx.nn": []}
    for _ in range(rounds):
        for modules, seconds in times.items():
            code = f"import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout.split()[-1]))
    found = {name: sorted(values)[len(values) // 4] * 1e6 for name, values in times.items()}
    rows = [{"what": "import", "part": f"import {name}", "us": us} for name, us in found.items()]
    added = found["torch, fasttx.nn"] - found["torch"]
    return [*rows, {"what": "import", "part": "added by fasttx", "us": added}]


def run(
    device: torch.device,
    out: Path,
    *,
    rehearsal: bool = False,
    deadline: float | None = None,
    say: Callable[[str], None] = print,
    watch: Watch = unwatched,
) -> list[Row]:
    """Measures everything and writes `out`; a rehearsal makes two rounds of each.

    Parts that have not begun by `deadline` (time.monotonic) are left out, and named.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], list[Row]]] = {
        "ops": lambda: op_rows(device, 2 if rehearsal else 61),
        "functions": lambda: function_rows(device, 2 if rehearsal else 61),
        "layers": lambda: layer_rows(device, 3 if rehearsal else 101),
        "import": lambda: import_rows(1 if rehearsal else 7),
    }
    rows: list[Row] = []
    for name in watch(list(parts), name=str):
        if deadline is not None and time.monotonic() > deadline:
            say(f"{name}: not run: time budget")
        else:
            rows += parts[name]()
    torch.set_num_threads(before)
    where = "rehearsal" if rehearsal else torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    write([{**row, "device": where} for row in rows], ("what", "part", "us", "ratio", "device"), out)
    for row in rows:
        value = f"{row['us']:,.1f} us" if "us" in row else f"{row['ratio']:.3f}"
        say(f"{row['what']}: {row['part']}: {value}")
    return rows


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("host")
    options = parser.parse_args(arguments)
    bound, device = bound_of(parser, options), device_of(None)
    shown = watch or watcher("bench host")
    run(device, options.out, rehearsal=options.quick, deadline=deadline_in(bound), watch=shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
