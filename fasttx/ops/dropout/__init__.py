"""The dropout scheme in PyTorch's operators: row by row, and of attention."""
