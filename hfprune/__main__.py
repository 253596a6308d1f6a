"""`python -m hfprune`: the `hfprune` command."""

from hfprune.cli.app import app

app(prog_name="hfprune")
