"""The op `cross_entropy`: op.py has its row of the table."""
