"""`python -m bitnas` is the `bitnas` command."""

import sys

from bitnas.cli import main

if __name__ == "__main__":
    sys.argv[0] = "bitnas"  # a run folder notes the command that made it
    main()
