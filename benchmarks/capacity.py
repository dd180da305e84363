"""What guard needs for 10^6, 10^8 and 10^9 answers a day: the tables of `docs/explanation/capacity.md`.

    python benchmarks/capacity.py

Prints the tables from the figures below: those that were measured, and those that are assumed and that you replace by
your own. A test holds the page to what this prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

DAYS_SECONDS = 86_400
VOLUMES = (10**6, 10**8, 10**9)


@dataclass(frozen=True)
class Assumed:
    """What a deployment brings along.

    Attributes:
        peak: of the busiest second, over the mean of the day.
        answer_tokens: of an answer.
        gpu_tokens_s: that one GPU generates a second, for all of its requests together.
        gpu_dollars_h, reviewer_dollars_h: cost of an hour.
        escalated: share of answers that go to a person.
        audited: share of accepted answers that are drawn for an audit.
        review_s: of a person, for a case.
        shift_h: that a reviewer decides cases in a day.
    """

    peak: float = 3.0
    answer_tokens: int = 150
    gpu_tokens_s: float = 2500.0
    gpu_dollars_h: float = 2.5
    reviewer_dollars_h: float = 40.0
    escalated: float = 0.02
    audited: float = 0.001
    review_s: float = 60.0
    shift_h: float = 6.0


@dataclass(frozen=True)
class UnitFigures:
    """What was measured; docs/explanation/capacity.md says how.

    Attributes:
        overhead: of guard on vLLM, as a factor; a measured one below 1 counts as 1.
        observe_s: core seconds to read one token of 32 layers of 4,096 numbers, for maps of every token.
        request_bytes: that leave a worker with an answer of that model: its signature, and its layers' outputs.
        decisions_s, cases_s: written a second, by one program with 16 threads on one PostgreSQL.
        decision_bytes, case_bytes: in the database, with indexes.
    """

    overhead: float = 1.0
    observe_s: float = 0.00049
    request_bytes: int = 2_643_474
    decisions_s: float = 146.0
    cases_s: float = 80.0
    decision_bytes: int = 1819
    case_bytes: int = 1720


@dataclass(frozen=True)
class Needs:
    """What a number of answers a day needs; each attribute is a row of the page's table.

    Attributes:
        answers_s: a second, at the peak.
        tokens_s: generated a second, at the peak.
        gpus: that generate them, with guard's overhead.
        cores: that read the layers.
        features_mb_s: from the workers to the servers, all together.
        decisions_logs: audit logs, each on a database of its own.
        stored_gb: a day.
        cases: for people, a day.
        hours: of reviewers, a day.
        reviewers: on a day.
        gpu_dollars, people_dollars: a day.
    """

    answers_s: float
    tokens_s: float
    gpus: int
    cores: int
    features_mb_s: float
    decisions_logs: int
    stored_gb: float
    cases: float
    hours: float
    reviewers: int
    gpu_dollars: float
    people_dollars: float


def needs(answers: float, assumed: Assumed = Assumed(), measured: UnitFigures = UnitFigures()) -> Needs:
    """Return what some answers a day need.

    Examples:
        >>> needs(10**6).gpus
        3
    """
    answers_s = answers / DAYS_SECONDS * assumed.peak
    tokens_s = answers_s * assumed.answer_tokens
    gpus = math.ceil(tokens_s * measured.overhead / assumed.gpu_tokens_s)
    escalated = answers * assumed.escalated
    cases = escalated + (answers - escalated) * assumed.audited
    hours = cases * assumed.review_s / 3600
    busy = answers_s / measured.decisions_s + answers_s * cases / answers / measured.cases_s
    return Needs(
        answers_s=answers_s,
        tokens_s=tokens_s,
        gpus=gpus,
        cores=math.ceil(tokens_s * measured.observe_s),
        features_mb_s=answers_s * measured.request_bytes / 1e6,
        decisions_logs=math.ceil(busy),
        stored_gb=(answers * measured.decision_bytes + cases * measured.case_bytes) / 1e9,
        cases=cases,
        hours=hours,
        reviewers=math.ceil(hours / assumed.shift_h),
        gpu_dollars=gpus * 24 * assumed.gpu_dollars_h,
        people_dollars=hours * assumed.reviewer_dollars_h,
    )


ROWS = {
    "answers a second, at the peak": "answers_s",
    "tokens generated a second, at the peak": "tokens_s",
    "GPUs": "gpus",
    "CPU cores that read layers": "cores",
    "features out of the workers, MB a second": "features_mb_s",
    "databases, each with an audit log": "decisions_logs",
    "stored, GB a day": "stored_gb",
    "cases for people, a day": "cases",
    "reviewers' hours a day": "hours",
    "reviewers": "reviewers",
    "GPUs, dollars a day": "gpu_dollars",
    "reviewers, dollars a day": "people_dollars",
}


def table() -> Iterator[str]:
    """Yield the lines of the table of all volumes."""
    found = [needs(answers) for answers in VOLUMES]
    yield "| answers a day | " + " | ".join(f"{answers:,}" for answers in VOLUMES) + " |"
    yield "| --- |" + " ---: |" * len(VOLUMES)
    for label, name in ROWS.items():
        yield f"| {label} | " + " | ".join(shown(getattr(each, name)) for each in found) + " |"


def people_table(answers: float = 10**6) -> Iterator[str]:
    """Yield the lines of a table of reviewers, by the shares that go to them."""
    audited = (0.0, 0.001, 0.01)
    yield "| of accepted answers audited | " + " | ".join(f"{share:.1%}" for share in audited) + " |"
    yield "| --- |" + " ---: |" * len(audited)
    for escalated in (0.001, 0.01, 0.02, 0.05):
        found = [needs(answers, Assumed(escalated=escalated, audited=share)).reviewers for share in audited]
        yield f"| {escalated:.1%} escalated | " + " | ".join(shown(each) for each in found) + " |"


def shown(value: float) -> str:
    """Return a number with three figures.

    Examples:
        >>> shown(34.7222), shown(5208.3), shown(20979)
        ('34.7', '5,210', '21,000')
    """
    if isinstance(value, int) and value < 1000:
        return f"{value}"
    digits = 2 - math.floor(math.log10(value)) if value else 0
    return f"{round(value, digits):,.{max(0, digits)}f}"


if __name__ == "__main__":
    print(*table(), "", *people_table(), sep="\n")
