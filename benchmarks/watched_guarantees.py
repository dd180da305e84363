"""How often a watched guarantee gives a false alarm, and how soon a broken one is noticed: simulations, as Markdown.

    python benchmarks/watched_guarantees.py [--runs 1000] [--scores SCORES] [--out docs/evidence/watch.md]

The guarantee is 5 %, the stated probability of a false alarm 5 %. `MAPIE` is its RiskMonitoring with the same guarantee
and level. The changing world has 5,000 questions, certified beforehand on 2,000 labels; half-way, answers that scored
alike become wrong more often. Its calls go through guard's own decision, draw and tests; only the reviewer is an
oracle.

The same world is drawn from recorded answers of a model, with replacement: scores by fits that did not see the question
(`scores.py`), and whether the answer is wrong. From the middle on each wrong answer is drawn four times as often. More
of these answers are wrong, so the guarantees are 10 % and 20 %.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.certification.fixed_sequence import Certified, Trials, find_threshold
from guard.monitoring.risk_test import STAKES, risk_evidence
from guard.monitoring.sampling import is_drawn
from guard.monitoring.shift_test import EXPONENTS, STEPS, ShiftTest
from guard.monitoring.shift_test import FALSE_ALARMS as SHIFT_FALSE_ALARMS
from guard.monitoring.wagers import AT_ONCE, BETWEEN_STARTS
from guard.policy.bounds import lower_bound, upper_bound

RISK, CONFIDENCE, FALSE_ALARMS = 0.05, 0.9, 0.05
#: Audited answers in each run, as many as a year's at 8 a day.
LABELS = 3000
#: Questions of the changing world, before and after the change, and labels for each certificate.
HALF, CERTIFYING, AGAIN = 2500, 2000, 1000
#: Runs of the changing world, and of MAPIE, at most.
STORIES, MAPIE_RUNS = 300, 20
#: By how much the log-odds of being wrong rise at the change; and with recorded answers, whose guarantees are others.
HARDER, HARDER_RECORDED, RISKS_RECORDED = 2.0, float(np.log(4)), (0.1, 0.2)
SCORES = Path(__file__).parent / "results" / "risk-guarantee-qwen2.5-1.5b-scores.jsonl.gz"
BEGIN, END = "<!-- watched-guarantees: begin -->", "<!-- watched-guarantees: end -->"


# -- the test of a guarantee -----------------------------------------------------------------------


def alarms(rates: NDArray[np.float64], runs: int, seed: int) -> list[int | None]:
    """Return when each run's guarantee is found broken, for the true share of wrong answers at each label.

    All runs go in step, which is a hundred times as fast; the first few are compared with `risk_evidence`.
    """
    rng = np.random.default_rng([seed, int(1000 * rates.sum())])
    wrong = rng.random((runs, len(rates))) < rates
    stakes = np.array(STAKES)
    found = _first_crossing(
        (np.where(column[:, None], 1 + stakes * (1 / RISK - 1), 1 - stakes) for column in wrong.T),
        (runs, len(stakes)),
        1 / FALSE_ALARMS,
    )
    for number in range(min(3, runs)):
        check = risk_evidence(wrong[number].tolist(), risk=RISK, false_alarms=FALSE_ALARMS)
        assert check.broken_at == found[number], (check, found[number])
    return found


def _first_crossing(factors: Iterable[NDArray[np.float64]], shape: tuple[int, int], limit: float) -> list[int | None]:
    """Return when the total of `Wagers` reaches a limit in each run, for the factors of each observation in turn."""
    wealth, starts = np.full(shape, AT_ONCE), 0
    crossed = np.zeros(shape[0], int)
    for seen, paid in enumerate(factors):
        if seen and seen % BETWEEN_STARTS == 0:
            starts += 1
            wealth += (1 - AT_ONCE) / (starts * (starts + 1))
        wealth *= paid
        over = (wealth.mean(1) + (1 - AT_ONCE) / (starts + 1) >= limit) & (crossed == 0)
        crossed[over] = seen + 1
        wealth[crossed > 0] = 0.0  # its run is over, and must not overflow
    return [int(each) or None for each in crossed]


def mapie_alarms(rate: float, runs: int) -> list[int | None]:
    """Return when MAPIE's monitoring finds the same, in fewer runs: it reads the whole history at each update."""
    from mapie.exchangeability_testing import RiskMonitoring
    from mapie.risk_control.risks import false_positive_rate

    found: list[int | None] = []
    for number in range(runs):
        wrong = np.random.default_rng([7, number]).random(LABELS) < rate
        monitor = RiskMonitoring(false_positive_rate, test_level=2 * FALSE_ALARMS, threshold=RISK, warn=False)
        monitor.update(np.zeros(LABELS, int), wrong.astype(int))
        above = monitor.online_risk_lower_bound_sequence_history > RISK
        found.append(int(above.argmax()) + 1 if above.any() else None)
    return found


def guarantee_table(runs: int) -> Iterable[str]:
    yield from _head(
        "truly wrong",
        "alarms in 3,000 audited answers",
        "95 % interval",
        "labels to the alarm: 10 %, median, 90 %",
        f"MAPIE: median of {MAPIE_RUNS} runs",
    )
    for rate in (0.02, 0.04, 0.05, 0.06, 0.08, 0.10, 0.15, 0.20):
        found = alarms(np.full(LABELS, rate), runs, 0)
        mapie = mapie_alarms(rate, min(runs, MAPIE_RUNS)) if rate > RISK else []
        yield f"| {rate:.0%} | {_share(found)} | {_delays(found)} | {_median(mapie) if mapie else '-'} |"


def change_table(runs: int) -> Iterable[str]:
    yield from _head(
        "before", "after", "alarms before", "noticed", "labels from the change to the alarm: 10 %, median, 90 %"
    )
    for quiet in (0, 200, 1000):
        for rate in (0.10, 0.20):
            found = alarms(np.array([0.02] * quiet + [rate] * (LABELS - quiet)), runs, 1)
            early = sum(each is not None and each <= quiet for each in found)
            after = [None if each is None else each - quiet for each in found if each is None or each > quiet]
            noticed = sum(each is not None for each in after) / len(after)
            yield f"| {quiet:,} at 2 % | {rate:.0%} | {early / runs:.1%} | {noticed:.1%} | {_delays(after, LABELS)} |"


def _head(*columns: str) -> Iterable[str]:
    yield f"| {' | '.join(columns)} |"
    yield "| " + " | ".join(["---"] * len(columns)) + " |"


def _share(found: Sequence[int | None]) -> str:
    given, level = sum(each is not None for each in found), 0.975
    low, high = lower_bound(given, len(found), level), upper_bound(given, len(found), level)
    return f"{given / len(found):.1%} | {low:.1%} to {high:.1%}"


def _delays(found: Sequence[int | None], never: int = LABELS) -> str:
    """Return the quantiles of the delay; a run without an alarm counts as longer than all others."""
    given = np.array([never + 1 if each is None else each for each in found])
    return ", ".join(_number(each, never) for each in np.quantile(given, [0.1, 0.5, 0.9]))


def _median(found: Sequence[int | None]) -> str:
    return _number(float(np.median([LABELS + 1 if each is None else each for each in found])), LABELS)


def _number(delay: float, never: int) -> str:
    return "none" if delay > never else f"{delay:,.0f}"


# -- a world that changes ------------------------------------------------------------------------


@dataclass
class Story:
    """One run of the changing world.

    Attributes:
        early: whether the alarm came before the change.
        delay, audited: questions and audited answers from the change to the alarm; None without one.
        wrong: share of wrong answers among the accepted: before the change, from it to the alarm, after the renewal.
        coverage: share of accepted answers before the change, and after the renewal.
        renewed: whether a new certificate was made in time.
    """

    early: bool = False
    delay: int | None = None
    audited: int | None = None
    wrong: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=dict)
    renewed: bool = False


def answers(rng: np.random.Generator, number: int, harder: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores and whether each answer is wrong; the score does not know that questions became harder."""
    doubt = rng.normal(-2.0, 3.0, number)
    wrong = rng.random(number) < 1 / (1 + np.exp(-(doubt + harder)))
    return 1 / (1 + np.exp(-doubt)), wrong


@dataclass(frozen=True, slots=True)
class ChangingWorld:
    """Where scored answers come from.

    Attributes:
        draw: returns scores and whether each answer is wrong, for a generator, a number and by how much the log-odds of
            being wrong are higher at the same score.
        harder: by how much they rise at the change.
        risk: what is guaranteed.
    """

    draw: Callable[[np.random.Generator, int, float], tuple[NDArray[np.float64], NDArray[np.bool_]]] = answers
    harder: float = HARDER
    risk: float = RISK


SIMULATED = ChangingWorld()


def recorded_worlds(path: Path) -> tuple[ChangingWorld, ...]:
    """Return the worlds of recorded answers, one for each guarantee; the harder, the more wrong ones are drawn."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    scores, wrong = (np.array([row[name] for row in rows]) for name in ("p_wrong", "wrong"))

    def draw(rng: np.random.Generator, number: int, harder: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        weights = np.where(wrong, np.exp(harder), 1.0)
        drawn = rng.choice(len(scores), number, p=weights / weights.sum())
        return scores[drawn], wrong[drawn]

    return tuple(ChangingWorld(draw, HARDER_RECORDED, risk) for risk in RISKS_RECORDED)


def live(rate: float, seed: int, half: int = HALF, world: ChangingWorld = SIMULATED) -> Story | None:
    """Certify, serve, audit at a rate, suspend, have people decide everything, certify again, serve on."""
    rng, key = np.random.default_rng([3, seed]), np.random.default_rng([4, seed]).bytes(32)
    first = find_threshold(
        Trials.from_scores(*world.draw(rng, CERTIFYING, 0.0)), risk=world.risk, confidence=CONFIDENCE, estimate=False
    )
    if not isinstance(first, Certified):
        return None
    before, after = world.draw(rng, half, 0.0), world.draw(rng, half, world.harder)
    scores, wrong = (np.concatenate(parts) for parts in zip(before, after, strict=True))
    accepted = scores < first.threshold
    drawn = [at for at in np.flatnonzero(accepted) if is_drawn(key, f"{seed} {at}", rate)]
    evidence = risk_evidence(wrong[drawn].tolist(), risk=world.risk, false_alarms=FALSE_ALARMS)
    story = Story()
    story.coverage["before"] = float(accepted[:half].mean())
    story.wrong["before"] = _rate(wrong[:half][accepted[:half]])
    if evidence.broken_at is None:
        story.wrong["unnoticed"] = _rate(wrong[half:][accepted[half:]])
        return story
    alarm = int(drawn[evidence.broken_at - 1])
    if alarm < half:
        story.early = True
        return story
    story.delay, story.audited = alarm - half + 1, sum(half <= at <= alarm for at in drawn)
    story.wrong["unnoticed"] = _rate(wrong[half : alarm + 1][accepted[half : alarm + 1]])
    return _renewed(story, rng, world)


def _renewed(story: Story, rng: np.random.Generator, world: ChangingWorld) -> Story:
    """While the certificate is suspended the route escalates, so people label every answer; then certify again."""
    fresh = Trials.from_scores(*world.draw(rng, AGAIN, world.harder))
    second = find_threshold(fresh, risk=world.risk, confidence=CONFIDENCE, estimate=False)
    story.renewed = isinstance(second, Certified)
    if isinstance(second, Certified):
        scores, wrong = world.draw(rng, 20_000, world.harder)
        story.coverage["after"] = float((scores < second.threshold).mean())
        story.wrong["after"] = _rate(wrong[scores < second.threshold])
    return story


def _rate(wrong: NDArray[np.bool_]) -> float:
    return float(wrong.mean()) if len(wrong) else 0.0


def story_table(runs: int, worlds: Sequence[ChangingWorld] = (SIMULATED,)) -> Iterable[str]:
    yield from _head(
        "guarantee",
        "audit rate",
        "questions after the change",
        "alarm before it",
        "noticed",
        "questions to the alarm: median, 90 %",
        "audited until then",
        "accepted: before, after",
        "wrong: before, until the alarm, after",
        "guarantee kept after",
    )
    for world in worlds:
        for rate, half in ((0.2, HALF), (0.02, HALF), (0.02, 20_000)):
            stories = [live(rate, number, half, world) for number in range(min(runs, STORIES))]
            yield _story_row([story for story in stories if story is not None], rate, half, world.risk)


def _story_row(stories: Sequence[Story], rate: float, half: int, risk: float) -> str:
    noticed = [story for story in stories if story.delay is not None]
    quiet = [story for story in stories if not story.early]
    delays = [half + 1 if story.delay is None else story.delay for story in quiet]
    renewed = [story for story in noticed if story.renewed]
    kept = sum(story.wrong["after"] <= risk for story in renewed)
    return (
        f"| {risk:.0%} | {rate:.0%} | {half:,} | {1 - len(quiet) / len(stories):.1%} "
        f"| {len(noticed) / len(quiet):.1%} "
        f"| {', '.join(_number(each, half) for each in np.quantile(delays, [0.5, 0.9]))} "
        f"| {np.median([story.audited for story in noticed if story.audited is not None] or [0]):.0f} "
        f"| {_mean(stories, 'coverage', 'before')}, {_mean(renewed, 'coverage', 'after')} "
        f"| {_mean(stories, 'wrong', 'before')}, {_mean(quiet, 'wrong', 'unnoticed')}, "
        f"{_mean(renewed, 'wrong', 'after')} "
        f"| {kept} of {len(renewed)} ({len(noticed) - len(renewed)} not certifiable) |"
    )


def _mean(stories: Sequence[Story], what: str, when: str) -> str:
    found = [getattr(story, what)[when] for story in stories if when in getattr(story, what)]
    return f"{np.mean(found):.1%}" if found else "-"


# -- the label-free alarm ------------------------------------------------------------------------


def shift_table(runs: int) -> Iterable[str]:
    yield from _head(
        "inputs above 95 % of the earlier ones",
        "alarms before",
        "noticed in 2,000",
        "inputs to the alarm: 10 %, median, 90 %",
    )
    for share in (0.05, 0.10, 0.20, 0.50):
        found = shifted(share, runs)
        early = sum(each is not None and each <= 1000 for each in found)
        after = [None if each is None else each - 1000 for each in found if each is None or each > 1000]
        noticed = sum(each is not None for each in after) / len(after)
        yield f"| {share:.0%} | {early / runs:.1%} | {noticed:.1%} | {_delays(after, 2000)} |"


def shifted(share: float, runs: int) -> list[int | None]:
    """Return the input of each run's alarm: 1,000 of one kind, then 2,000 of which a share is unusual (5 %: no change).

    As in `alarms`, all runs go in step, and the first is compared with `ShiftTest`.
    """
    rng = np.random.default_rng([5, int(1000 * share)])
    unusual = rng.random((runs, 2000)) < share
    after = np.where(unusual, rng.uniform(0.95, 1.0, unusual.shape), rng.uniform(0.0, 0.95, unusual.shape))
    scores = np.concatenate([rng.random((runs, 1000)), after], axis=1)
    ties = rng.random(scores.shape)
    shape, limit = (runs, len(EXPONENTS)), 1 / SHIFT_FALSE_ALARMS
    found = _first_crossing(_bets(scores, ties), shape, limit)
    test = ShiftTest()
    for score, tie in zip(scores[0], ties[0], strict=True):
        test.observe(float(score), tie=float(tie))
    assert test.alarm_at == found[0], (test.alarm_at, found[0])
    return found


def _bets(scores: NDArray[np.float64], ties: NDArray[np.float64]) -> Iterable[NDArray[np.float64]]:
    """Yield what each score pays the bets of `ShiftTest`, shape (runs, bets)."""
    steps, exponents = np.minimum(STEPS - 1, (scores * STEPS).astype(int)), np.array(EXPONENTS)
    counts, every = np.zeros((len(scores), STEPS), int), np.arange(len(scores))
    for seen in range(scores.shape[1]):
        step = steps[:, seen]
        above = (counts * (np.arange(STEPS) > step[:, None])).sum(1)
        p_value = (above + ties[:, seen] * (counts[every, step] + 1)) / (seen + 1)
        counts[every, step] += 1
        yield exponents * np.maximum(p_value, 1e-12)[:, None] ** (exponents - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--scores", type=Path, default=SCORES, help="of recorded answers, one JSON object a line")
    parser.add_argument("--out", type=Path, help="document whose part between the markers is replaced")
    arguments = parser.parse_args()
    recorded = recorded_worlds(arguments.scores)
    parts = [f"{arguments.runs:,} runs a line ({STORIES} of the changing world), {datetime.now(UTC):%Y-%m-%d}."]
    for title, table in (
        ("False alarms and delays", guarantee_table),
        ("A change after a quiet time", change_table),
        ("A world that changes half-way", story_table),
        ("The same with recorded answers", lambda runs: story_table(runs, recorded)),
        ("Without labels", shift_table),
    ):
        began = time.monotonic()
        parts.append(f"### {title}\n\n" + "\n".join(table(arguments.runs)))
        print(f"{title}: {time.monotonic() - began:.0f} s", flush=True)
    made = "\n\n".join(parts)
    print(made)
    if arguments.out:
        text = arguments.out.read_text(encoding="utf-8")
        head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        arguments.out.write_text(f"{head}\n\n{made}\n\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
