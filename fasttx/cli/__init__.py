"""The command line: ``python -m fasttx doctor | supported | demo``."""
