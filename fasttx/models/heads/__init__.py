"""Heads: which losses they compute, on which labels, and with which of our functions."""
