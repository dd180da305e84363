"""The console script ``guard``, and ``python -m guard``: the command line, whose own import can be interrupted too."""

from __future__ import annotations

import sys


def main() -> None:
    """Import and run the command line; Ctrl-C ends either with exit code 130 and without a traceback."""
    try:
        from guard.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
