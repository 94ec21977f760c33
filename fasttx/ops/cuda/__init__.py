"""What the ops share of their way to fasttx._C: how a launcher is called, and how rows are described to it."""
