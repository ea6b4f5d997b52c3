"""The commands of the command line: each file adds its parsers and returns what it did as a Result.  Only `nnc.__main__` prints.

Nothing here imports torch before a command runs, so that `nnc --help` and wrong usage answer at once.
"""
