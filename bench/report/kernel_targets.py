"""The goals of single ops on a GPU."""

from __future__ import annotations

from .goals import Goal, Target
from .queries import Kernel, Rates

KERNELS = "python -m bench.kernels --only {} --out results/<machine>/kernels.csv"
CUDNN, FLASH, SDPA = ("sdpa[cudnn]",), ("sdpa[flash]",), ("sdpa[*",)
LONG = ("attention-d64-s1024", "attention-d64-s2048", "attention-d64-s4096")
SHORT = {128: "attention-bert-base-s128", 256: "attention-d64-s256", 512: "attention-bert-base-s512"}
BY_MEMORY = (
    "softmax-16384x1024",
    "softmax-4096x30522",
    "dropout_add_layer_norm-bert-base-16384x768",
    "dropout_add_layer_norm-16384x1024-inference",
    "bias_gelu-bert-base-16384x3072",
)
LOSS = "cross_entropy-bert-mlm-4096x30522"
HEAD, INT8 = "linear_cross_entropy-bert-mlm-4096x30522", "int8_linear-bert-base-mlp-16384x768x3072-gelu"
WAYS = ("fwd", "bwd")


def _kernels(
    names: tuple[str, ...], ways: tuple[str, ...], peers: tuple[str, ...] = (), rate: str = ""
) -> tuple[Kernel, ...]:
    return tuple(Kernel(name, way, peers, rate) for name in names for way in ways)


def _rate(asked: float, name: str, way: str) -> Goal:
    length = int(name.rpartition("-s")[2])
    return Goal(asked, f"our own rate, {length:,} tokens", (Kernel(name, way, (), "tflops"),), "TFLOP/s")


KERNEL_TARGETS = (
    Target(
        "A1",
        "Attention forward, heads of 64, 1,024 to 4,096 tokens, nothing padded",
        KERNELS.format("attention-d64"),
        (
            Goal(1.2, "PyTorch's sdpa with cuDNN", _kernels(LONG, ("fwd",), CUDNN)),
            Goal(1.6, "PyTorch's sdpa with flash attention", _kernels(LONG, ("fwd",), FLASH)),
            _rate(470, LONG[0], "fwd"),
            _rate(520, LONG[2], "fwd"),
        ),
    ),
    Target(
        "A2",
        "Attention forward, heads of 64, short texts",
        KERNELS.format("attention"),
        tuple(
            goal
            for length, asked, rate in ((128, 1.7, 220), (256, 1.5, 400), (512, 1.25, 430))
            for goal in (
                Goal(asked, f"PyTorch's best sdpa, {length} tokens", _kernels((SHORT[length],), ("fwd",), SDPA)),
                _rate(rate, SHORT[length], "fwd"),
            )
        ),
    ),
    Target(
        "A3",
        "Attention backward, heads of 64, 512 and 4,096 tokens",
        KERNELS.format("attention"),
        (
            Goal(1.5, "sdpa with cuDNN, 512 tokens", _kernels((SHORT[512],), ("bwd",), CUDNN)),
            Goal(2.0, "sdpa with flash attention, 512 tokens", _kernels((SHORT[512],), ("bwd",), FLASH)),
            Goal(1.13, "sdpa with cuDNN, 4,096 tokens", _kernels(LONG[2:], ("bwd",), CUDNN)),
            Goal(1.65, "sdpa with flash attention, 4,096 tokens", _kernels(LONG[2:], ("bwd",), FLASH)),
            _rate(400, SHORT[512], "bwd"),
            _rate(490, LONG[2], "bwd"),
        ),
    ),
    Target(
        "A4",
        "Attention backward, heads of 64, 128 and 256 tokens",
        KERNELS.format("attention"),
        (
            Goal(2.5, "PyTorch's best sdpa, 128 tokens", _kernels((SHORT[128],), ("bwd",), SDPA)),
            Goal(2.0, "PyTorch's best sdpa, 256 tokens", _kernels((SHORT[256],), ("bwd",), SDPA)),
            _rate(200, SHORT[128], "bwd"),
            _rate(330, SHORT[256], "bwd"),
        ),
    ),
    Target(
        "A5",
        "Attention with dropout of 0.1, forward and backward, 512 to 2,048 tokens (measured at 512)",
        KERNELS.format("s512-dropout"),
        (
            Goal(
                2.0, "sdpa with flash attention and dropout", _kernels((f"{SHORT[512]}-dropout",), ("fwd+bwd",), FLASH)
            ),
            Goal(0.9, "our own rate without dropout", (Rates(f"{SHORT[512]}-dropout", SHORT[512]),)),
        ),
    ),
    Target(
        "A6",
        "Attention of texts of different lengths, up to 512, forward and backward",
        KERNELS.format("s512"),
        (
            Goal(
                6.0,
                "PyTorch's sdpa with a padding mask",
                _kernels((f"{SHORT[512]}-ragged-packed",), ("fwd+bwd",), SDPA),
            ),
            Goal(0.95, "our own rate at equal lengths", (Rates(f"{SHORT[512]}-ragged-packed", SHORT[512]),)),
            Goal(
                1.2,
                "PyTorch's varlen_attn, with cuDNN and with flash attention",
                _kernels((f"{SHORT[512]}-ragged-packed",), ("fwd+bwd",), ("varlen_attn*",)),
            ),
        ),
    ),
    Target(
        "A7",
        "Attention, heads of 128, from 2,048 tokens (measured at 2,048)",
        KERNELS.format("attention-d128"),
        tuple(
            Goal(asked, f"sdpa with cuDNN, {word}", _kernels(("attention-d128-s2048",), (way,), CUDNN))
            for asked, word, way in ((0.95, "forward", "fwd"), (0.92, "backward", "bwd"))
        ),
    ),
    Target(
        "A8",
        "Attention, heads of 32 (MiniLM, ELECTRA-small), 128 to 512 tokens (measured at 256)",
        KERNELS.format("attention-minilm"),
        (Goal(1.3, "PyTorch's best sdpa", _kernels(("attention-minilm-d32-s256",), WAYS, SDPA)),),
    ),
    Target(
        "B1",
        "Softmax, cross-entropy, layer norm with residual and dropout, bias with GELU; rows of 1,024 to 65,536",
        KERNELS.replace("--only {} ", ""),
        (
            Goal(
                0.95, "the speed of a copy of as many bytes", _kernels((*BY_MEMORY, LOSS), WAYS, ("device copy",)), ""
            ),
            Goal(1.0, "torch.compile", _kernels(BY_MEMORY, WAYS, ("torch.compile",))),
            Goal(1.5, "torch.compile, cross-entropy", _kernels((LOSS,), WAYS, ("torch.compile",))),
        ),
    ),
    Target(
        "B2",
        "The head of a masked language model, forward and backward, 30,522 words",
        KERNELS.format("linear_cross_entropy"),
        (
            Goal(8.0, "transformers' head and loss over all 16,384 tokens, of which 15 % are labelled"),
            Goal(20.0, "their memory", unit="times less"),
            Goal(1.5, "Liger's fused loss on the same rows", _kernels((HEAD,), ("step",), ("liger",))),
        ),
    ),
    Target(
        "C1",
        "int8 product of two matrices of 8,192 x 8,192",
        "",
        (Goal(1.2, "PyTorch's _int_mm, tuned"), Goal(1390, "our own rate", unit="TOPS")),
    ),
    Target(
        "C2",
        "int8 linear layer with GELU, 4,096 to 65,536 rows, widths of BERT (measured at 16,384 x 768 x 3,072)",
        KERNELS.format("int8_linear"),
        (
            Goal(
                2.0,
                "PyTorch's operators around _int_mm, both on rows that are int8 already",
                _kernels((INT8,), ("fwd",), ("_int_mm eager",)),
            ),
            Goal(
                1.6,
                "the same layer in bf16, our quantising included",
                (Kernel(INT8, "fwd", ("bf16*",), plus=("quantize_per_token-16384x768",)),),
            ),
            Goal(1.5, "torchao's int8, compiled"),
        ),
    ),
)
