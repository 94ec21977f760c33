"""The op `bias_gelu`: op.py has its row of the table."""
