"""softmax and log_softmax where the operator may not or need not run: torch's function then, or a refusal if forced."""

from __future__ import annotations

import pytest
import torch

import fasttx.nn.functional as F
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.registry import LAUNCHES

both = pytest.mark.parametrize(
    "fasttx_fn, torch_fn",
    [(F.softmax, torch.nn.functional.softmax), (F.log_softmax, torch.nn.functional.log_softmax)],
    ids=["softmax", "log_softmax"],
)
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


def gradients(function, x, dim):
    x = x.detach().requires_grad_()
    out = function(x, dim)
    return out.detach(), torch.autograd.grad(out, x, torch.linspace(-1, 2, out.numel(), device=x.device).view(x.shape))[
        0
    ]


@both
def test_a_forced_backend_runs_every_dim(device, fasttx_fn, torch_fn):
    """auto leaves columns with a stride to torch's kernel, which needs no copy; forced, ours can run them and does."""
    x = torch.randn(3, 4, 5, device=device)
    LAUNCHES.clear()
    with backend("triton"):
        for dim in (0, 1, -3, -2):
            torch.testing.assert_close(gradients(fasttx_fn, x, dim), gradients(torch_fn, x, dim))
    assert LAUNCHES == {("softmax_fwd", "triton"): 4, ("softmax_bwd", "triton"): 4}


@both
def test_a_function_mode_does_not_hide_the_kernels(device, fasttx_fn, torch_fn):
    """torch.set_default_device and `with device` work by a function mode, which is no subclass of Tensor."""
    x = torch.randn(3, 5, device=device)
    mask = torch.ones(5, dtype=torch.bool, device=device)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    for mode in (torch.device(device), Watch()):
        LAUNCHES.clear()
        with backend("triton"), mode:
            torch.testing.assert_close(fasttx_fn(x, -1), torch_fn(x, -1))
            torch.testing.assert_close(fasttx_fn(x, -1, mask=mask, scale=2.0), torch_fn(2.0 * x, -1))
        assert LAUNCHES == {("softmax_fwd", "triton"): 2}
    torch.set_default_device(device)
    try:
        LAUNCHES.clear()
        with backend("triton"):
            fasttx_fn(x, -1)
    finally:
        torch.set_default_device(None)
    assert LAUNCHES == {("softmax_fwd", "triton"): 1}


class Named(torch.Tensor):
    """A subclass that keeps its class, as torch's functions do by default."""


def _mask_gradient(f, x):
    bias = torch.zeros(5, device=x.device, requires_grad=True)
    return torch.autograd.grad(f(x, -1, mask=bias).square().sum(), bias)


TO_TORCH = {
    "0-d": ("no dim", lambda f, x: f(x[0, 0], 0)),
    "float64": ("a dtype|a floating type", lambda f, x: f(x.double(), -1)),
    "to float64": ("a dtype", lambda f, x: f(x, -1, dtype=torch.float64)),
    "scaled float64": ("a floating type", lambda f, x: f(x.double(), -1, scale=2.0)),
    "vmap": ("torch.func", lambda f, x: torch.func.vmap(lambda y: f(y, -1, scale=2.0))(x)),
    "jacrev": ("torch.func", lambda f, x: torch.func.jacrev(lambda y: f(y, -1))(x)),
    "jvp": ("torch.func", lambda f, x: torch.func.jvp(lambda y: f(y, 0), (x,), (x,))),
    "subclass": ("subclass", lambda f, x: f(x.as_subclass(Named), -1)),
    "scaled subclass": ("subclass", lambda f, x: f(x.as_subclass(Named), -1, scale=2.0)),
    "gradient of the mask": ("mask requires", _mask_gradient),
}


@both
@pytest.mark.parametrize("case", TO_TORCH)
def test_what_the_operator_does_not_cover_is_refused_where_a_backend_is_forced(device, case, fasttx_fn, torch_fn):
    reason, call = TO_TORCH[case]
    x = torch.randn(3, 5, device=device)
    for name in ("triton", "cuda"):
        with backend(name), pytest.raises(BackendError, match=f"^{fasttx_fn.__name__}: backend '{name}'.*({reason})"):
            call(fasttx_fn, x)
    with backend("torch"):
        expected = call(fasttx_fn, x)
    with backend("auto"):
        torch.testing.assert_close(call(fasttx_fn, x), expected)
    with backend("triton"):  # nothing to launch: any backend counts as run
        assert fasttx_fn(x[:0].double(), -1).shape == (0, 5) and fasttx_fn(x.to("meta"), -1).is_meta


@both
def test_torch_func_and_forward_ad(fasttx_fn, torch_fn):
    x, t = torch.randn(4, 5), torch.randn(4, 5)
    with backend("auto"):
        for a, b in (
            (torch.func.vmap(lambda x: fasttx_fn(x, -1)), torch.func.vmap(lambda x: torch_fn(x, -1))),
            (torch.func.grad(lambda x: fasttx_fn(x, -1)[0, 0]), torch.func.grad(lambda x: torch_fn(x, -1)[0, 0])),
            (torch.func.vmap(lambda x: fasttx_fn(x, -1, scale=2.0)), torch.func.vmap(lambda x: torch_fn(2.0 * x, -1))),
            (torch.func.jacrev(lambda x: fasttx_fn(x, -1)), torch.func.jacrev(lambda x: torch_fn(x, -1))),
        ):
            torch.testing.assert_close(a(x), b(x))
        found = torch.func.jvp(lambda x: fasttx_fn(x, -1, scale=1.0), (x,), (t,))
        torch.testing.assert_close(found, torch.func.jvp(lambda x: torch_fn(x, -1), (x,), (t,)))


@both
def test_nested_and_subclasses(fasttx_fn, torch_fn):
    parts = [torch.randn(2, 5), torch.randn(3, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    with backend("triton"), pytest.raises(BackendError, match="subclass"):
        fasttx_fn(nested, -1)
    with backend("auto"):
        for found, part in zip(fasttx_fn(nested, -1).unbind(), parts):
            torch.testing.assert_close(found, torch_fn(part, -1))
        x = torch.randn(2, 5).as_subclass(Named)
        assert type(fasttx_fn(x, -1)) is type(torch_fn(x, -1)) is Named
        assert type(fasttx_fn(x, -1, scale=2.0)) is Named
        scaled = torch_fn(2.0 * x.as_subclass(torch.Tensor), -1)
        torch.testing.assert_close(fasttx_fn(x, -1, scale=2.0).as_subclass(torch.Tensor), scaled)
