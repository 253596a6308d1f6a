"""The `hfprune` command."""

from hfprune.cli.app import app

__all__ = ["app"]
