"""What fasttx.functional exports."""

from __future__ import annotations

import pkgutil

import fasttx.functional


def test_no_public_function_shares_its_name_with_a_module() -> None:
    """The import of the module would replace the function, or the other way round."""
    modules = {m.name for m in pkgutil.iter_modules(fasttx.functional.__path__)}
    assert not modules & set(fasttx.functional.__all__)
