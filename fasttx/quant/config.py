"""What :func:`fasttx.quantize` can be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def names_to_skip(given: Any) -> tuple[str, ...]:
    """The names of layers, or their patterns, that an argument ``skip`` gives.

    Raises:
        TypeError: it is no sequence of strings.
    """
    listed = isinstance(given, Iterable) and not isinstance(given, str)
    names = tuple(given) if listed else ()
    if not listed or not all(isinstance(pattern, str) for pattern in names):
        raise TypeError(f"skip: got {given!r}; allowed is a sequence of names")
    return names


ACTIVATIONS = ("dynamic", "static")


@dataclass(frozen=True)
class Int8Config:
    r"""How :func:`fasttx.quantize` makes a model's linear layers int8.

    Args:
        activation: ``"dynamic"``: each token gets a scale of its own when a layer is called. ``"static"``: each layer
            has one scale, from what :func:`fasttx.calibrate` saw. That is less accurate by far where tokens differ.
        skip: names of layers to leave alone, as they are called within the model. A shell's wildcards work
            (``"*.output.dense"``, ``"encoder.layer.0.*"``).
        keep_float: keep the float layers beside the int8 ones, at the cost of their memory. Then
            :func:`fasttx.dequantize` gives back the very same objects with their exact weights; otherwise it makes
            layers of the rounded weights.
        smooth: SmoothQuant's alpha, from 0 to 1, 0.6 for one; None for none. A channel of the inputs that
            is large is made small, and its column of the weight large, before both are rounded:

            .. math:: s_j = \max_t |x_{tj}|^\alpha / \max_n |w_{nj}|^{1 - \alpha}, \quad
                x W^T = (x / s)\,(W \,\mathrm{diag}(s))^T

            s is rounded to powers of two, so that no float changes but by its exponent. It needs
            :func:`fasttx.calibrate`. Layers where it does not lower the error on what was seen do without. Where
            nothing but such layers reads a norm (ViT, DeiT, ModernBERT), 1/s goes into the norm's weight and bias for
            good, unless ``keep_float``; elsewhere a layer multiplies its input by it.
        measure: time each shape of a layer on the device where it is, as it is and int8, with as many rows as calls in
            :func:`fasttx.calibrate` had (the median; 512 without a calibration), and leave float what is faster so. The
            report has the times of those. It takes about a second for a model; under
            ``torch.use_deterministic_algorithms(True)`` nothing is timed, and all become int8.

    Raises:
        TypeError, ValueError: an argument is not as above. The message names it.

    Source: Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models",
    2023, section 4.
    """

    activation: str = "dynamic"
    skip: tuple[str, ...] = ()
    keep_float: bool = False
    smooth: float | None = None
    measure: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: got {self.activation!r}; allowed are 'dynamic' and 'static'")
        object.__setattr__(self, "skip", names_to_skip(self.skip))
        for name in ("keep_float", "measure"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}; allowed are True and False")
        if self.smooth is not None:
            if isinstance(self.smooth, bool) or not isinstance(self.smooth, (int, float)):
                raise TypeError(f"smooth: got {self.smooth!r}; allowed are None and numbers from 0 to 1")
            if not 0 <= self.smooth <= 1:
                raise ValueError(f"smooth: got {self.smooth!r}; allowed are None and numbers from 0 to 1")

    @property
    def calibrated(self) -> bool:
        """Whether it needs what :func:`fasttx.calibrate` sees."""
        return self.activation == "static" or self.smooth is not None
