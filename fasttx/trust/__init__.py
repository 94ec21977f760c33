"""Kernels are believed on the machine where they were checked: the check at first use, and its record."""
