"""A file for each command of `gbcd`: flags in, words out; the work is done by the packages that follow a prompt.

What takes long to import is imported by the command that needs it, so that `--help` is instant. `options.py` has the
flags that commands share, `terminal.py` where they print and their exit statuses.
"""
