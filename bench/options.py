"""The options of each benchmark. Nothing here imports torch: ``fasttx bench model --help`` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .arms import ARMS, SHAPES
from .cpu_cases import CASES as CPU_CASES
from .lengths import NAMES
from .model_cases import CPU_TOKENS, TASKS, TOKENS
from .progress import add_bound
from .serving_cases import CASES as SERVING_CASES

BACKENDS = ("triton", "cuda", "torch")
OWN_TASKS = ("embed", "classify", "train", "fine-tune")
ABOUT = {
    "kernels": "Each op at the shapes people use, beside PyTorch, torch.compile and other kernels.",
    "model": "A step of BERT and MiniLM: fasttx beside transformers' attentions and torch.compile.",
    "serving": "Embedding requests in batches of 1, 8 and 64, beside transformers and sentence-transformers.",
    "host": "What a call costs in Python, before anything runs on the device.",
    "padding": "What skipping padding gains on this device, at several widths and shapes.",
    "cpu": "MiniLM and BERT on a CPU beside transformers, torch.compile, ONNX Runtime and OpenVINO.",
    "int8": "How near MiniLM on int8 comes to float32, by the ways of fasttx.Int8Config, and how fast each is.",
    "own": "Your own model on your own texts: verified, timed beside itself unpatched, and what to call.",
    "report": "A page of what is reached: the tables of other benchmarks beside the project's goals, and pictures.",
}
"""The benchmarks by name, and what each measures; `report` measures nothing, and reads what the others wrote."""


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a benchmark's options; what it reads has `seconds` for :func:`bench.progress.bound_of`."""
    parser = argparse.ArgumentParser(description=ABOUT[name])
    if name == "report":
        _report(parser)
        return parser
    parser.add_argument("--out", type=Path, default=Path(f"{name}.csv"), help="the table that is written")
    _OPTIONS[name](parser)
    add_bound(parser)
    return parser


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="by default cuda where torch sees a GPU, else cpu")


def _choice(parser: argparse.ArgumentParser, flag: str, among: Iterable[str], about: str, **more: Any) -> None:
    """An option with a few values, which its help lists: argparse would put them all on the line of usage."""
    known = list(among)
    listed = f"{about}: {' | '.join(known)}"
    parser.add_argument(flag, choices=known, metavar=flag.lstrip("-").upper(), help=listed, **more)


def _kernels(parser: argparse.ArgumentParser) -> None:
    _device(parser)
    parser.add_argument("--only", default="", help="part of a workload's name")
    _choice(parser, "--backend", BACKENDS, "by default triton on a GPU, torch on a CPU")
    _choice(parser, "--beside", BACKENDS, "backends timed in the same turns", nargs="+", default=())
    parser.add_argument("--hot", action="store_true", help="time on cached inputs as well")
    parser.add_argument("--quick", action="store_true", help="one workload an op, three rounds, no torch.compile")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny sizes, Triton's interpreter: no figures")


def _model(parser: argparse.ArgumentParser) -> None:
    _device(parser)
    _choice(parser, "--model", SHAPES, "whose shapes are measured", nargs="+")
    parser.add_argument("--seqlen", nargs="+", type=int, help="tokens of the longest row")
    _choice(parser, "--lengths", NAMES, "how long rows are (bench/lengths.py)", nargs="+")
    tasks = "training: a step of a masked language model with AdamW; the other two run the encoder without a head"
    _choice(parser, "--task", TASKS, tasks, nargs="+")
    parser.add_argument("--batch", type=int, help=f"rows (default: {TOKENS} padded tokens; {CPU_TOKENS} on a CPU)")
    _choice(parser, "--arm", [arm.name for arm in ARMS], "attentions and compilers to compare", nargs="+")
    parser.add_argument("--target", nargs="+", help="the cases that answer these targets, D1 for one")
    parser.add_argument("--quick", action="store_true", help="one thread, two layers, three rounds, fasttx and sdpa")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at tiny sizes: no figures")


def _serving(parser: argparse.ArgumentParser) -> None:
    _device(parser)
    _choice(parser, "--model", sorted({case.model for case in SERVING_CASES}), "whose shapes are measured", nargs="+")
    parser.add_argument("--requests", type=int, help="by default 64 or 256, on a CPU at most 64")
    parser.add_argument("--target", nargs="+", help="the cases that answer these targets: E3")
    parser.add_argument("--quick", action="store_true", help="one thread, few requests, two rounds")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at tiny sizes: no figures")


def _host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two rounds of each, for a rehearsal")


def _padding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two widths, two shapes, two rounds")


def _cpu(parser: argparse.ArgumentParser) -> None:
    for flag, about in (("model", "whose shapes are measured"), ("kind", "of batches"), ("task", "what is done")):
        known = dict.fromkeys(getattr(case, flag) for case in CPU_CASES)
        _choice(parser, f"--{flag}", known, about, nargs="+")
    parser.add_argument("--threads", type=_positive, help="of every arm (default: as many as PyTorch takes)")
    parser.add_argument("--quick", action="store_true", help="MiniLM's embeddings, one batch of a kind, no compilers")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at tiny sizes: no figures")


def _int8(parser: argparse.ArgumentParser) -> None:
    about = "alphas of SmoothQuant to try, from 0 to 1 (default: 0.6)"
    parser.add_argument("--smooth", nargs="+", type=_share, default=[0.6], help=about)
    parser.add_argument("--quick", action="store_true", help="an eighth of the texts, two turns")


def _own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a saved transformers model, or a name of the Hub")
    parser.add_argument("--texts", type=Path, required=True, help="a text on each line, or label, tab and text")
    about = "by default what the model's own head is for; fine-tune trains a classifier on the labels of the file"
    _choice(parser, "--task", OWN_TASKS, about)
    parser.add_argument("--batch", nargs="+", type=_positive, help="texts a batch (default: 1 8 32; training: 16)")
    parser.add_argument("--max-length", type=_positive, default=512, help="tokens of the longest text (default: 512)")
    pads = "what batches are padded to: their longest text, or --max-length, as many scripts do (default: longest)"
    _choice(parser, "--pad", ("longest", "max"), pads, default="longest")
    parser.add_argument("--most", type=_positive, default=256, help="texts that are taken (default: the first 256)")
    parser.add_argument("--int8", action="store_true", help="also with int8 weights, for inference")
    parser.add_argument("--no-compilers", action="store_true", help="leave out what compiles, which takes minutes")
    parser.add_argument("--html", type=Path, help="also write a page that holds everything, to be sent on")
    _device(parser)
    parser.add_argument("--quick", action="store_true", help="32 texts, three rounds, no compilers")


def _report(parser: argparse.ArgumentParser) -> None:
    about = "folders or files that other benchmarks or gpu-check wrote (default: results)"
    parser.add_argument("results", nargs="*", type=Path, default=[Path("results")], metavar="RESULTS", help=about)
    parser.add_argument("--out", type=Path, default=Path("report"), help="the folder that is written (default: report)")


def _positive(given: str) -> int:
    if not given.isdigit() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"got {given}; allowed are whole numbers from 1")
    return int(given)


def _share(given: str) -> float:
    try:
        found = float(given)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"got {given}; allowed are numbers from 0 to 1")
    return found


_OPTIONS = {
    **{"kernels": _kernels, "model": _model, "serving": _serving, "host": _host, "padding": _padding},
    **{"cpu": _cpu, "int8": _int8, "own": _own},
}
