"""The op `softmax`: op.py has its row of the table."""
