"""Encoders on real tokens only."""
