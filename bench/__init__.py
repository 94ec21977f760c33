"""Measurements: kernels, models, host cost. Importable as `bench` from a checkout and as `fasttx.bench` anywhere."""
