"""`python -m hfprune.cli`: the `hfprune` command."""

from hfprune.cli.app import app

if __name__ == "__main__":
    app(prog_name="hfprune")
