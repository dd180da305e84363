"""Certificates for policies that guarantee an error rate, with figures made up for tests."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripted import AnsweringEngine, confidence_scorer, scripted_model

from guard.policy.bounds import upper_bound
from guard.policy.certificate import Certificate, Certificates
from guard.policy.guarantee import guarantees, trial_policy
from guard.policy.policy import Policy, parse_policy
from guard.runtime.guard import Guard
from guard.scoring.provenance import DataSet

GUARANTEE = "  - accept: {max_error_rate: 0.05, confidence: 0.9}"
LADDER = f"""rules:
{GUARANTEE}
  - retry: {{below: 0.6, times: 1}}
  - abstain: {{text: I do not know.}}
"""


def policy(body: str = LADDER) -> Policy:
    return parse_policy(f"version: 1\nname: test\n{body}")


def engine(p_wrong: float = 0.1, **model: object) -> AnsweringEngine:
    return AnsweringEngine(lambda prompt, number: ("Paris", p_wrong), model=scripted_model(**model))


def certificate(of: Policy, *, route: str | None = None, guard: Guard | None = None, **changes: Any) -> Certificate:
    """A certificate for the scripted model, with made-up but consistent figures."""
    made = guard or Guard(engine(), confidence_scorer(), trial_policy(of))
    guarantee = guarantees(of)[route]
    fields: dict[str, Any] = {
        "route": route,
        "policy": of.name,
        "risk": guarantee.max_error_rate,
        "confidence": guarantee.confidence,
        "threshold": 0.25,
        "coverage": 0.4,
        "n": 1000,
        "accepted": 400,
        "errors": 0,
        "bound": upper_bound(changes.get("errors", 0), changes.get("accepted", 400), guarantee.confidence),
        "grid_rows": 100,
        "tested": 30,
        "seed": 0,
        "grader": "by the row",
        "fingerprint": made.fingerprint(of, route),
        "data": [DataSet(name="fresh", sha256="d" * 64, rows=1100, wrong=300)],
        "deterministic": False,
        "seeded": True,
        "created_by": "guard 0.1.0",
    }
    return Certificate(**{**fields, **changes})


def certificates(*members: Certificate) -> Certificates:
    return Certificates("cert.json", {each.route: each for each in members})


def written() -> dict[str, Any]:
    """The content of a good file."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "c.json"
        certificates(certificate(policy())).save(file)
        content: dict[str, Any] = json.loads(file.read_text())
    return content
