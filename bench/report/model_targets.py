"""The goals of whole models on a GPU, and of a CPU."""

from __future__ import annotations

from ..cpu_cases import KINDS
from .cpu_queries import Added, Cpu, Layer, Sentences
from .goals import Goal, Target
from .queries import Latency, Model

CPU = "python -m fasttx bench cpu --out results/<machine>/cpu.csv"
STEPS = "python -m bench.model --target {} --out results/<machine>/model.csv"


def _large(peers: tuple[str, ...] = (), value: str = "", over: float = 1.0) -> tuple[Model, ...]:
    return (Model("bert-large", "training", "wikipedia", 512, peers, value, over),)


def _unpadded(peers: tuple[str, ...]) -> tuple[Model, ...]:
    return tuple(Model(m, "training", "full", s, peers) for m in ("bert-base", "bert-large") for s in (128, 512))


MODEL_TARGETS = (
    Target(
        "D1",
        "Training step of BERT-large in bf16, lengths as in Wikipedia",
        STEPS.format("D1"),
        (
            Goal(
                1.0,
                "MLPerf v4.1's best on an H200, in FP8: 1,029 sequences a second",
                _large(value="sequences_per_s", over=1029.0),
            ),
        ),
    ),
    Target(
        "D2",
        "The same batches",
        STEPS.format("D2"),
        (
            Goal(4.0, "transformers, eager", _large(("eager",))),
            Goal(3.2, "transformers, sdpa", _large(("sdpa",))),
            Goal(2.5, "transformers, sdpa, torch.compile", _large(("sdpa + torch.compile",))),
        ),
    ),
    Target(
        "D3",
        "Training step without padding, BERT-base and BERT-large, 128 and 512 tokens",
        STEPS.format("D3"),
        (
            Goal(1.8, "transformers, eager", _unpadded(("eager",))),
            Goal(1.3, "transformers, torch.compile, max-autotune", _unpadded(("sdpa + max-autotune",))),
        ),
    ),
    Target(
        "E1",
        "Answers of BERT-large to questions as in SQuAD, all at once",
        STEPS.format("E1"),
        (
            Goal(0.8, "MLPerf v4.1's best on an H200, in FP8 (9,224 a second): int8", unit=""),
            Goal(
                0.6,
                "the same: bf16",
                (Model("bert-large", "inference", "squad", 384, (), "sequences_per_s", 9224.0),),
                "",
            ),
        ),
    ),
    Target(
        "E2",
        "Answers of BERT-base, 128 texts of 128 tokens",
        STEPS.format("E2"),
        (
            Goal(1.8, "torch.compile in bf16: int8"),
            Goal(
                1.25,
                "torch.compile in bf16: bf16",
                (
                    Model(
                        "bert-base",
                        "inference",
                        "full",
                        128,
                        ("sdpa + torch.compile", "sdpa + max-autotune"),
                        batch=128,
                    ),
                ),
            ),
        ),
    ),
    Target(
        "E3",
        "One text of 128 tokens through BERT-base",
        "python -m bench.serving --target E3 --out results/<machine>/serving.csv",
        (
            Goal(8.0, "transformers, eager", (Latency("E3", ("eager",)),)),
            Goal(0.45, "the time itself", (Latency("E3"),), "ms", most=True),
        ),
    ),
    Target("F1", "Training step of BERT-large with int8 products", "", (Goal(1.25, "our own step in bf16"),)),
    Target(
        "Memory",
        "Peak of a training step of BERT-large, 32 x 512",
        STEPS.format("D2"),
        (Goal(0.6, "of transformers' with sdpa", _large(("sdpa",), "peak_MiB"), "", most=True),),
    ),
    Target(
        "G1",
        "A CPU, batches with padding, float32, inference and training",
        "python -m bench.padding --out results/<machine>/padding.csv",
        (
            Goal(
                None,
                "transformers, sdpa",
                (Cpu(True, ("sdpa",), asked_of_machine=True),),
                hangs_on="padded / real tokens, times what G3 asks of that CPU",
            ),
            Goal(2.0, "ONNX Runtime", (Cpu(True, ("ONNX Runtime",)),), command=CPU),
            Goal(2.0, "OpenVINO", (Cpu(True, ("OpenVINO",)),), command=CPU),
        ),
        gpu=False,
    ),
    Target(
        "G2",
        "What a call costs in Python",
        "python -m bench.host --out results/<machine>/host.csv",
        (
            Goal(6.0, "added to an op's forward and backward, less check and allocation", (Added(),), "us", most=True),
            Goal(1.0, "transformers' own layer, on few tokens", (Layer(),)),
        ),
        gpu=False,
    ),
    Target(
        "G3",
        "A CPU, batches without padding, float32, inference and training",
        "python -m bench.padding --out results/<machine>/padding.csv",
        (
            Goal(
                None,
                "transformers, sdpa",
                (Cpu(False, ("sdpa",), asked_of_machine=True),),
                hangs_on="1.9 x on AMD, where oneDNN's products take half the time of MKL's; 1 x elsewhere",
            ),
            Goal(1.0, "OpenVINO", (Cpu(False, ("OpenVINO",)),), command=CPU),
        ),
        gpu=False,
    ),
    Target(
        "G4",
        "MiniLM on a CPU with bf16 or VNNI: 32 texts with padding, 32 of one length, one text",
        CPU,
        (
            *(
                Goal(
                    asked,
                    f"transformers in float32: {precision}, {kind}",
                    (Sentences(kind, (f"fasttx, {precision}*",), ("transformers, fp32",)),),
                )
                for precision, numbers in (("int8", (15, 7, 4.5)), ("bf16", (12, 5, 3)))
                for asked, kind in zip(numbers, KINDS, strict=True)
            ),
            *(
                Goal(1.0, f"{peer}: int8", tuple(Sentences(kind, ("fasttx, int8*",), (peer,)) for kind in KINDS))
                for peer in ("ONNX Runtime, int8", "OpenVINO, its own choice")
            ),
        ),
        gpu=False,
    ),
    Target(
        "G5",
        "int8 linear layer on a CPU, with quantising, bias and GELU",
        "",
        (Goal(1.4, "the time of PyTorch's _int_mm alone", unit="x", most=True),),
        gpu=False,
    ),
)
