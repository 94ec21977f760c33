"""fasttx's attention and masks as transformers' registry wants them."""
