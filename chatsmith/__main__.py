"""`python -m chatsmith` is the `chatsmith` command."""

from chatsmith.cli import main

if __name__ == "__main__":
    main()
