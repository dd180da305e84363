"""Run ``python -m tests.mutants`` from the repository root; see `tests/mutants/runner.py`."""

import sys

from tests.mutants.runner import main

sys.exit(main())
