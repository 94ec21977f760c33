"""Attention as functions: the drop-in of PyTorch's, padded and packed layouts, and which of the two runs."""
