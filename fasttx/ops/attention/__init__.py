"""The op `attention`: op.py has its row of the table."""
