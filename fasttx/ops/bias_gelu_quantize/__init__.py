"""The op `bias_gelu_quantize`: op.py has its row of the table."""
