"""The op `kl_div`: op.py has its row of the table."""
