"""What is done and undone many times, in threads and in other processes: the model as before, nothing left."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from torch import nn
from torch.nn.modules import module as every_module
from torch.optim import optimizer as every_optimizer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import fasttx
from fasttx.trust import later

CLS = "BertForMaskedLM"
INPUTS = zoo.inputs_for(zoo.BERT, CLS, labels=False)


def tiny(**changes: Any) -> Any:
    return zoo.tiny_model(zoo.BERT, CLS, **{"num_hidden_layers": 1} | changes)


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**INPUTS).logits
    return logits[INPUTS["attention_mask"].bool()]


def state_of(model: Any) -> Any:
    """All that a patch may touch: classes, attributes, children, parameters by their identity, the config."""
    modules = [
        (name, type(m), sorted(m.__dict__), [id(x) for x in (*m._modules.values(), *m._parameters.values())])
        for name, m in model.named_modules()
    ]
    return modules, id(model.config), dict(vars(model.config))


def process_state() -> dict[str, Any]:
    """What belongs to the process and not to a model."""
    globally = {name: found for name, found in vars(every_module).items() if name.startswith("_global_")}
    hooks = {name: list(found) if isinstance(found, dict) else found for name, found in globally.items()}
    ours = {name: vars(found) for name, found in list(sys.modules.items()) if name.split(".")[0] == "fasttx" and found}
    sizes = {(m, n): len(x) for m, names in ours.items() for n, x in names.items() if isinstance(x, (dict, list, set))}
    own = {f"{module}.{name}": size for (module, name), size in sizes.items() if not name.startswith("__")}
    own.pop("fasttx.trust.later._models", None)  # an entry for each model that was patched, as long as that lives
    return own | {
        "hooks": hooks,
        "hooks of optimizers": list(every_optimizer._global_optimizer_post_hooks.values()),
        "flags": [torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()],
        "more flags": [torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.is_autocast_enabled("cpu")],
        "random numbers": torch.get_rng_state().sum().item(),
        "attention": sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()),
        "masks": sorted(ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()),
        "loading": transformers.PreTrainedModel.__dict__["from_pretrained"],
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
    }


def same(after: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether nothing is in the one that is not in the other; a module may have been imported meanwhile."""
    other = {name for name in before if after[name] != before[name]}
    assert not other, {name: (before[name], after[name]) for name in other}
    return True


def resident() -> int:
    """Bytes of this process that are in memory."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def patch_and_unpatch(model: Any) -> None:
    fasttx.patch(model)
    fasttx.unpatch(model)


def capture_and_release(model: Any) -> None:
    with fasttx.capture(model) as captured:
        captured(**INPUTS)


def quantize_and_back(model: Any) -> None:
    fasttx.quantize(model, fasttx.Int8Config(keep_float=True))
    fasttx.dequantize(model)


def prune_and_finish(model: Any) -> None:
    fasttx.prune(model, 0.5)
    fasttx.prune(model, finish=True)


TIMES = {patch_and_unpatch: 200, capture_and_release: 50, quantize_and_back: 50, prune_and_finish: 50}


@pytest.mark.parametrize("both", TIMES, ids=lambda f: f.__name__)
def test_done_and_undone_many_times(both: Callable[[Any], None]) -> None:
    """By what Python counts, and, for tensors, by what the process holds: the weights of the layer take 1.3 MB."""
    model = tiny(hidden_size=128, intermediate_size=1024)
    for _ in range(5):  # classes are made, and memory is asked of the system
        both(model)
    before, around, logits = state_of(model), process_state(), run(model)
    gc.collect()
    objects, held = len(gc.get_objects()), resident()
    for _ in range(TIMES[both]):
        both(model)
    gc.collect()
    more = len(gc.get_objects()) - objects
    assert more < TIMES[both] // 2 and resident() - held < 20 * 2**20
    assert state_of(model) == before and torch.equal(run(model), logits)
    assert same(process_state(), around)
    gone = weakref.ref(model)
    del model, both
    gc.collect()
    assert gone() is None and all(each.root() is not None for each in later._models)


class Injected(BaseException):
    """What no handler of an error catches, as an interrupt."""


def lines_of(call: Callable[[], Any], files: tuple[str, ...], fails_at: int = 0) -> int:
    """How many lines of these files a call runs; at one of them it fails."""
    count, others = 0, sys.gettrace()

    def in_frame(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        if event == "line" and count == fails_at:
            sys.settrace(None)
            raise Injected
        return in_frame

    def in_call(frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = code.co_filename.endswith(files) and code.co_name != "<lambda>"  # one runs when a mask is collected
        return in_frame if ours else None

    sys.settrace(in_call)
    try:
        call()
    finally:
        sys.settrace(others)
    return count


def patched() -> Any:
    model = tiny()
    fasttx.patch(model)
    return model


STEPS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], tuple[str, ...]]] = {
    "patch": (tiny, fasttx.patch, ("models/patch.py", "models/subclass.py")),
    "patch again": (patched, lambda model: fasttx.patch(model, unpad=False), ("models/patch.py", "models/subclass.py")),
    "unpatch": (patched, fasttx.unpatch, ("models/patch.py", "models/subclass.py")),
    "capture": (tiny, fasttx.capture, ("capture/capture.py", "models/patch.py")),
    "quantize": (tiny, fasttx.quantize, ("models/quantize.py", "quant/layers.py", "models/saved_int8.py")),
    "prune": (tiny, lambda model: fasttx.prune(model, 0.5), ("models/prune.py", "models/masks.py")),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_exception_at_a_step_leaves_the_model_as_before(name: str) -> None:
    """At every eleventh line that runs, and at the last ones: on one model, so that the next call has to work, too."""
    make, call, files = STEPS[name]
    call(make())  # makes the classes
    total = lines_of(lambda: call(make()), files)
    if make is patched:
        total -= lines_of(make, files)
    gc.collect()
    prune_and_finish(tiny())  # the hook for optimizers goes with the last model that has masks
    model = make()
    before, around = state_of(model), process_state()
    assert total > 50
    for number in [*range(1, total, 11), total - 1, total]:
        with pytest.raises(Injected):
            lines_of(lambda: call(model), files, number)
        assert state_of(model) == before, number
    call(model)
    assert state_of(model) != before
    if name == "prune":
        fasttx.prune(model, finish=True)
    assert same(process_state(), around)


@pytest.mark.filterwarnings("ignore")
def test_a_traced_part_is_no_obstacle() -> None:
    whole = torch.nn.Module()
    whole.model = zoo.tiny_model(zoo.BERT, zoo.BERT.bare)
    whole.extra = torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.zeros(1, 2))
    assert fasttx.patch(whole).replaced
    fasttx.quantize(whole)
    fasttx.dequantize(whole)
    fasttx.unpatch(whole)


def test_threads() -> None:
    """Each with a model of its own, all at once."""
    models = [tiny(seed=seed) for seed in range(3)]
    before, around, wanted = [state_of(m) for m in models], process_state(), [run(m) for m in models]
    meet, failed = threading.Barrier(len(models), timeout=60), []

    def work(model: Any, want: torch.Tensor) -> None:
        try:
            for _ in range(5):
                meet.wait()
                fasttx.patch(model, backend="torch")
                torch.testing.assert_close(run(model), want, rtol=1e-4, atol=1e-4)
                fasttx.unpatch(model)
                with fasttx.capture(model) as captured:
                    torch.testing.assert_close(run(captured.model), want, rtol=1e-4, atol=1e-4)
                prune_and_finish(copy.deepcopy(model))
        except BaseException as error:
            meet.abort()
            failed.append(error)

    threads = [threading.Thread(target=work, args=each) for each in zip(models, wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert [state_of(m) for m in models] == before and same(process_state(), around)


def in_a_child(model: Any, answers: Any) -> None:
    """Runs a model that another process patched and pruned, trains it, and undoes the patch."""
    torch.set_num_threads(1)
    model = pickle.loads(model) if isinstance(model, bytes) else model
    logits = run(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    optimizer.step()
    zeros = float((model.bert.encoder.layer[0].output.dense.weight == 0).float().mean())
    fasttx.unpatch(model)
    answers.send((logits.tolist(), zeros, fasttx.is_patched(model), type(model).__module__))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_in_another_process(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    model: Any = patched()
    fasttx.prune(model, 0.5)
    before, want = state_of(model), run(model)
    processes = multiprocessing.get_context(method)
    ours, theirs = processes.Pipe()
    given = model if method == "fork" else pickle.dumps(model)
    child: Any = processes.Process(target=in_a_child, args=(given, theirs))
    child.start()
    assert ours.poll(120)
    logits, zeros, still, module = ours.recv()
    child.join()
    torch.testing.assert_close(torch.tensor(logits), want, rtol=1e-4, atol=1e-4)
    assert zeros == pytest.approx(0.5, abs=0.01) and not still and module.startswith("transformers.")
    assert state_of(model) == before and fasttx.is_patched(model) and torch.equal(run(model), want)
    fasttx.prune(model, finish=True)
    assert isinstance(model.bert.encoder.layer[0].output.dense, nn.Linear)
