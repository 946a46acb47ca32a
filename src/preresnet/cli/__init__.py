"""What does each command of ``preresnet`` take, do and print?"""

from preresnet.cli.entry import main

__all__ = ["main"]
