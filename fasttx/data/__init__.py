"""Batches for padding-free models: collators that keep lengths on the host, and a sampler that groups like lengths.

Needs torch only: tokenizers and collators are taken as they are called, not as what they are.
"""

from .collators import PackingCollator
from .samplers import LengthBucketSampler

__all__ = ["LengthBucketSampler", "PackingCollator"]
