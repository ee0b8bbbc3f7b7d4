"""`python -m gbcd` is the same as `gbcd`."""

from gbcd.cli import app

app(prog_name="gbcd")
