"""What a GPU is asked in the quarter of an hour for which it is there: `make gpu-check`, after `make gpu-prepare`.

check.py is the parent, which needs no torch; child.py runs one stage of stages.py; every other file is a stage, or what
several stages share. report.py turns what came back into results/<machine>/ and docs/verification.md.
"""
