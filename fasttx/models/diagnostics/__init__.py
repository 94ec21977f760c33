"""What a patched model computes, how exactly, and by which backends: verify and explain."""
