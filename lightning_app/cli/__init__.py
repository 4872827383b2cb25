"""The command line: one file a verb."""

from lightning_app.cli.command_line import main

__all__ = ["main"]
