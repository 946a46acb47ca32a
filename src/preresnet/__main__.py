"""``python -m preresnet``: the same as the ``preresnet`` command."""

import sys

from preresnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
