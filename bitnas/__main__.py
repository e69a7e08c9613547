"""`python -m bitnas` is the `bitnas` command."""

from bitnas.cli import main

if __name__ == "__main__":
    main()
