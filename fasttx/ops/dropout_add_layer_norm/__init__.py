"""The op `dropout_add_layer_norm`: op.py has its row of the table."""
