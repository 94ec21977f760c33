"""Encoders frozen for inference: their layers as a few calls each, over weights that are laid out once."""
