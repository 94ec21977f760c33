"""torch.nn's own attention modules and encoders, patched by the drop-ins of ``fasttx.nn``."""

from __future__ import annotations

from torch import nn

from ... import nn as fasttx_nn
from ..options import Options
from ..report import Report, Row, expected_backend
from .fusion import changes_here

_NAMES = ("MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder")
REPLACED: dict[type, type] = {getattr(nn, name): getattr(fasttx_nn, name) for name in _NAMES}
"""Class of torch -> the class that a patched module gets; layer norms are replaced only within these."""
NORM_WHERE = "on a GPU; on a CPU torch's own function"
_NORMS = {nn.TransformerEncoderLayer: ("norm1", "norm2"), nn.TransformerEncoder: ("norm",)}


def holds_any(root: nn.Module) -> bool:
    """Whether one of these modules, or of subclasses of theirs, is in `root`."""
    return any(isinstance(module, tuple(REPLACED)) for module in root.modules())


def _left_alone(module: nn.Module, original: type, options: Options) -> str | None:
    """Why a module whose class is `original`, or made on top of it, stays as it is."""
    if type(module) is not original:
        return f"is a subclass of {original.__name__}; only torch.nn's own class is matched"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance; patch before it is prepared"
    if options.backend != "auto" or options.deterministic is not None:
        return "backend= and deterministic= do not reach torch.nn's modules; use fasttx.backend() and torch's switch"
    return None


def plan_torch_module(report: Report, name: str, module: nn.Module, options: Options) -> list[tuple[nn.Module, type]]:
    """What to assign for one module, with its rows in the report; nothing for a module of another kind."""
    original = next((cls for cls in REPLACED if isinstance(module, cls)), None)
    if original is None or isinstance(module, REPLACED[original]):
        return []
    reason = _left_alone(module, original, options)
    if reason is not None:
        report.rows.append(Row(name, type(module).__name__, None, "", reason))
        return []
    op = "attention" if original is nn.MultiheadAttention else "dropout_add_layer_norm"
    backend = "torch" if original is nn.TransformerEncoder else expected_backend(op, options.backend, module)
    note = "in evaluation, right padding is dropped" if original is nn.TransformerEncoder else ""
    after = f"fasttx.nn.{original.__name__}"
    ops = ("attention", "dropout_add_layer_norm") if original is nn.TransformerEncoderLayer else (op,)
    report.rows.append(Row(name, original.__name__, after, backend, note, ops=ops))
    found = [(module, REPLACED[original])]
    for child in _NORMS.get(original, ()) if options.norm else ():
        norm = getattr(module, child, None)
        if norm is None or isinstance(norm, fasttx_nn.LayerNorm):
            continue
        where = f"{name}.{child}" if name else child
        if type(norm) is nn.LayerNorm and "forward" not in norm.__dict__:
            backend = expected_backend("dropout_add_layer_norm", options.backend, norm)
            here, ops = changes_here(norm, options.backend), ("dropout_add_layer_norm",)
            report.rows.append(Row(where, "LayerNorm", "fasttx.nn.LayerNorm", backend, NORM_WHERE, here, ops=ops))
            found.append((norm, fasttx_nn.LayerNorm))
        else:
            reason = "is not torch.nn.LayerNorm, or its forward was replaced on the instance"
            report.rows.append(Row(where, type(norm).__name__, None, "", reason))
    return found
