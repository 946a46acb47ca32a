"""The commands of ``preresnet``: what each takes, does and prints."""

from preresnet.cli.entry import main

__all__ = ["main"]
