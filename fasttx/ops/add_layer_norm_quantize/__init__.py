"""The op `add_layer_norm_quantize`: op.py has its row of the table."""
