"""Measurements: kernels, models, host cost. Importable as `bench` from a checkout and as `fasttx.bench` anywhere."""

from __future__ import annotations

import os

if __name__ == "bench":
    # Part of the key of Triton's cache where it is set: tests, benchmarks and `make gpu-prepare`, which all import this
    # package from a checkout, find each other's kernels. An installed package leaves it to its user.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
