"""Batches for padding-free models: a collator that keeps lengths on the host, and a sampler that groups like lengths.

Needs only torch: tokenizers and collators are told by how they are called, not by their class.
"""

from .collators import PackingCollator
from .samplers import LengthBucketSampler

__all__ = ["LengthBucketSampler", "PackingCollator"]
