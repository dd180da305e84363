"""How calibration splits its questions. Certification reads this too, to know which rows of a file are fresh."""

from __future__ import annotations

#: Shares of questions, disjoint by question. Fitting holds out parts of its own share.
SPLIT_SHARES = {"fit": 0.8, "test": 0.2}
