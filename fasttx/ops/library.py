"""The namespace ``torch.ops.fasttx``, in which every operator of the package is defined."""

from __future__ import annotations

import torch

LIB = torch.library.Library("fasttx", "DEF")
