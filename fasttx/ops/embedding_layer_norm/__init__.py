"""The op `embedding_layer_norm`: op.py has its row of the table."""
