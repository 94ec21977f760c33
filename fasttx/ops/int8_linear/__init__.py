"""The op `int8_linear`: op.py has its row of the table."""
