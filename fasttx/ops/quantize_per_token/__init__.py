"""The op `quantize_per_token`: op.py has its row of the table."""
