"""Attention on a CPU, composed of PyTorch's operators: padded and packed batches, in chunks where memory asks so."""
