"""``python -m preresnet``: the same as the ``preresnet`` command."""

import atexit
import os
import sys

from preresnet.cli import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        # What several processes are joined by has threads in C++. One that still runs when Python unloads its libraries
        # aborts the process, so that its exit code would be lost; that was seen once, in a test.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
