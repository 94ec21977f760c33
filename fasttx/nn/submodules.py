"""Imports of torch.nn's submodules under our name: ``from fasttx.nn.utils import clip_grad_norm_``.

A finder gives torch's own module objects for every ``fasttx.nn.NAME`` that is no file of ours. Without it, attributes
alone would fall through to torch.nn, and imports below one of torch's packages would load its files a second time.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

OURS, TORCHS = "fasttx.nn.", "torch.nn."


class _Torchs(Loader):
    """Hands out torch's module, and gives it back the ``__spec__`` that the import system writes over."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(TORCHS + spec.name.removeprefix(OURS))
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(OURS):
            return None
        name = fullname.removeprefix(OURS)
        if "." not in name and PathFinder.find_spec(fullname, path) is not None:
            return None  # a file of ours
        try:
            found = importlib.util.find_spec(TORCHS + name)
        except ModuleNotFoundError:  # what is above it is no package
            found = None
        return (
            None
            if found is None
            else ModuleSpec(fullname, _Torchs(), is_package=bool(found.submodule_search_locations))
        )


def install() -> None:
    """Puts the finder first, once: the one of the path would look into the folders of torch's packages."""
    if not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
