"""Data sets by name: the ten of the ILIS paper, from a folder or from the Hugging Face hub.

`load_set` returns the rows of one; `resolve` reads the argument of ``--data``.
docs/reference/data.md lists them.
"""

from __future__ import annotations

from guard.data.sets.named import SETS, NamedSet
from guard.data.sets.sources import DataSource, OnBad, get_set, load_set, resolve

__all__ = ["SETS", "DataSource", "NamedSet", "OnBad", "get_set", "load_set", "resolve"]
