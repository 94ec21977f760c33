"""The families of models: transformers' class names, and what is done to each class, as data."""
