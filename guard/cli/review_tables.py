"""Tables of ``guard review``: the list, a case, a decision. `shown` makes all text in them visible."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from guard.cli.terminal import one_line, scores_line, shown, span_line
from guard.review.span_marks import any_span_wrong, describe_marks, span_places

if TYPE_CHECKING:
    from rich.table import Table

    from guard.records import Prompt
    from guard.review.stats import QueueStats
    from guard.review.store import Repeat, Review, ReviewEvent

#: Seconds of each unit of an age, largest first.
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def age(time: str, now: datetime | None = None) -> str:
    """Return how long ago an ISO 8601 time is, in its largest unit, such as ``3 d``."""
    seconds = max(0, int(((now or datetime.now(UTC)) - datetime.fromisoformat(time)).total_seconds()))
    return next((f"{seconds // size} {unit}" for unit, size in _UNITS if seconds >= size), "now")


def when(time: str) -> str:
    """Return date and minute of an ISO 8601 time, in UTC as stored."""
    return f"{time[:16].replace('T', ' ')} UTC"


def list_table(reviews: list[Review], *, with_status: bool, with_kind: bool) -> Table:
    """Return one line per review: id, age, score, question and answer."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("id", no_wrap=True, style="bold")
    table.add_column("age", no_wrap=True, justify="right")
    if with_status:
        table.add_column("status", no_wrap=True)
    if with_kind:
        table.add_column("kind", no_wrap=True)
    table.add_column("route", no_wrap=True, max_width=10, overflow="ellipsis")
    table.add_column("p(wrong)", no_wrap=True, justify="right")
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("answer", no_wrap=True, overflow="ellipsis", ratio=2)
    for review in reviews:
        cells = [review.id, age(review.created_at), *([review.status.value] if with_status else [])]
        cells += [review.kind] if with_kind else []
        cells += [review.route or "-", _shown_p_wrong(review), review.question, describe_answer(review)]
        table.add_row(*(shown(one_line(cell)) for cell in cells))
    return table


def case_table(review: Review, repeats: list[Repeat] | None = None) -> Table:
    """Return everything that a reviewer needs to decide a case."""
    return fields_table(
        [
            ("id", review.id),
            ("decision", review.decision_id),
            ("kind", _kind(review)),
            (
                "audited" if review.kind == "audit" else "escalated",
                f"{when(review.created_at)}, {age(review.created_at)} ago",
            ),
            ("repeated", _repeated(repeats or [])),
            ("route", review.route),
            ("policy", review.policy),
            ("model", review.model),
            *_promptfields_table(review.prompt, review.question),
            ("question", review.question),
            ("answer", describe_answer(review)),
            *_judgement(review),
            ("due", _due(review)),
            ("reviewers", _reviewers(review)),
            ("metadata", _as_json(review.metadata) if review.metadata else None),
        ]
    )


def _judgement(review: Review) -> list[tuple[str, str | None]]:
    """Return what guard makes of the answer; nothing of it leads a blind verdict."""
    if review.is_blind:
        hidden = "hidden until the verdict, as are its parts and the rule"
        return [("p(wrong)", hidden), ("spans", _spans(review))]
    return [
        ("p(wrong)", _probability(review.p_wrong)),
        ("scores", _scores(review)),
        ("spans", _spans(review)),
        ("any wrong", _any_wrong(review)),
        ("unlike", review.attempts[-1].get("unlike") if review.attempts else None),
        ("rule", f"{review.rule}: {review.reason}"),
    ]


def _kind(review: Review) -> str | None:
    """Return what an audit case is; an escalated one needs no words."""
    if review.kind != "audit":
        return None
    watches = f", watching certificate {review.certificate[:8]}" if review.certificate else ""
    return f"audit of an accepted answer, which its caller has; {review.audit_rate:.4g} of them are drawn{watches}"


def _due(review: Review) -> str | None:
    """Return when a case is due and what comes after, with a priority that is not the usual one."""
    priority = "" if review.priority == "normal" else f"{review.priority} priority"
    if review.due_at is None:
        return priority or None
    if review.kind == "audit":
        return f"{when(review.due_at)}, then it counts as wrong" + (f"; {priority}" if priority else "")
    gets = "no answer" if review.late is None or review.late.text is None else f"'{review.late.text}'"
    return f"{when(review.due_at)}, then the caller gets {gets}" + (f"; {priority}" if priority else "")


def _reviewers(review: Review) -> str | None:
    """Return who has the case, and whether it wants another opinion."""
    holder = review.holder(datetime.now(UTC).isoformat(timespec="microseconds"))
    wants = {0: "two opinions are wanted", 1: "a second opinion is wanted"}.get(review.opinions, "")
    parts = [
        f"claimed by {holder} until {when(str(review.claimed_until))}" if holder else "",
        f"assigned to {review.assigned_to}" if review.assigned_to else "",
        "two opinions differ: a third person decides" if review.disputed else "",
        wants if review.reviews_wanted > 1 and review.status == "pending" and not review.disputed else "",
    ]
    return "; ".join(part for part in parts if part) or None


def short_case_table(review: Review) -> Table:
    """Return a summary of the case that a reviewer is about to decide."""
    fields = [("id", review.id), ("question", review.question), ("answer", describe_answer(review))]
    return fields_table([*fields, ("p(wrong)", _shown_p_wrong(review))])


def attempts_table(review: Review) -> Table:
    """Return one line per attempt."""
    from rich import box
    from rich.table import Table

    table = Table(title="attempts", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", no_wrap=True, justify="right")
    table.add_column("source", no_wrap=True, max_width=12, overflow="ellipsis")
    table.add_column("p(wrong)", no_wrap=True, justify="right")
    table.add_column("ended", no_wrap=True)
    table.add_column("then", no_wrap=True)
    table.add_column("rule", no_wrap=True, max_width=14, overflow="ellipsis")
    table.add_column("answer", overflow="fold", min_width=16)
    for number, attempt in enumerate(review.attempts, start=1):
        answer = attempt["answer"] if attempt["answer"] is not None else f"({attempt['error']})"
        cells = [str(number), attempt["source"], _probability(attempt["p_wrong"])]
        cells += [_ended(attempt), attempt["action"], attempt["rule"], answer]
        table.add_row(*map(shown, cells))
    return table


def _ended(attempt: Mapping[str, Any]) -> str:
    """Return how an answer ended: ``stop``, ``stop_string``, ``length`` (truncated), or a dash if unknown."""
    return str(attempt.get("finish_reason") or "-")


def decision_table(review: Review, history: list[ReviewEvent]) -> Table:
    """Return the decision about a case and its history."""
    trail = "\n".join(map(_event, history))
    return fields_table(
        [
            ("status", review.status.value),
            ("the model", f"was {review.draft}" if review.draft else None),
            ("final answer", review.final_answer),
            ("note", review.note),
            ("history", trail),
        ]
    )


def _event(event: ReviewEvent) -> str:
    marks = describe_marks(event.span_marks)
    return f"{when(event.at)}  {event.what} by {event.who}{f', {marks}' if marks else ''}"


def describe_answer(review: Review) -> str:
    """Return the model's answer, or a note in its place."""
    return review.answer if review.answer is not None else "(none: generation failed)"


def _promptfields_table(prompt: Prompt, question: str) -> list[tuple[str, str | None]]:
    """Return the rest of the prompt: system message, earlier turns, passages, tools."""
    if prompt.messages is None:
        return [("prompt", prompt.text if prompt.text != question else None)]
    turns = [(str(turn["role"]), _content(turn)) for turn in prompt.messages]
    if turns[-1] == ("user", question):
        turns.pop()
    tools = [str(tool.get("function", tool).get("name", tool)) for tool in prompt.tools]
    return [*turns, ("tools", ", ".join(tools) or None)]


def _content(turn: Mapping[str, Any]) -> str:
    """Return a message's text with its other content, such as tool calls."""
    content = turn["content"] if isinstance(turn["content"], str) else _as_json(turn["content"])
    rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    return "\n".join(part for part in (content, _as_json(rest) if rest else "") if part)


def _repeated(repeats: list[Repeat]) -> str | None:
    times = "once" if len(repeats) == 1 else f"{len(repeats)} times"
    return f"{times} more, last {when(repeats[-1].created_at)}" if repeats else None


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _shown_p_wrong(review: Review) -> str:
    return "hidden" if review.is_blind else _probability(review.p_wrong)


def _probability(p_wrong: float | None) -> str:
    return "-" if p_wrong is None else f"{p_wrong:.3f}"


def _scores(review: Review) -> str | None:
    """Return every probability of the answer that was not accepted, with its inputs."""
    last = review.attempts[-1] if review.attempts else {}
    scores = last.get("scores") or {}
    lines = [
        f"{scores_line({name: each}, last.get('decides'))}: {', '.join(each['reads'])}" for name, each in scores.items()
    ]
    return "\n".join(lines) or None


def _any_wrong(review: Review) -> str | None:
    """Return the probability that any span of the answer is wrong."""
    found = any_span_wrong(review.attempts[-1]) if review.attempts else None
    return None if found is None else f"{found:.3f}, as if spans were independent"


def _spans(review: Review) -> str | None:
    """Return the parts of the answer, each with its number, its p_wrong, and its mark if a reviewer gave one.

    A star is at those above the policy's limit; a blind reviewer sees neither it nor p_wrong. An attempt is whatever is
    in the database: one without spans is shown without.
    """
    last = review.attempts[-1] if review.attempts else {}
    above, marks = last.get("spans_above") or [], {mark.place: mark for mark in review.span_marks}
    numbers = {place: number for number, place in enumerate(span_places(review.attempts), 1)}
    lines = []
    for each in last.get("spans") or []:
        place = each["start"], each["end"]
        text = one_line(each["text"]) if review.is_blind else f"{'*' if each in above else ' '} {span_line(each)}"
        mark = f"  (marked {'wrong' if marks[place].wrong else 'right'})" if place in marks else ""
        lines.append(f"{numbers[place]:>2} {text}{mark}")
    return "\n".join(lines) or None


def fields_table(pairs: Iterable[tuple[str, str | None]]) -> Table:
    """Return names and texts side by side, without those that have none."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold", max_width=12, overflow="ellipsis")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(shown(one_line(name)), shown(value))
    return table


def stats_tables(figures: QueueStats) -> list[Table]:
    """Return the queue in figures: what waits, who decides how much, how far people agree."""
    tables = [fields_table(_waiting(figures))]
    if figures.by_reviewer:
        tables.append(_reviewers_table(figures))
    if figures.shared:
        tables.append(fields_table(_agreement(figures)))
    return tables


def _waiting(figures: QueueStats) -> list[tuple[str, str | None]]:
    waiting = figures.by_status.get("pending", 0)
    decided = sum(count for status, count in figures.by_status.items() if status != "pending")
    oldest = f", the oldest for {age(figures.oldest)}" if figures.oldest else ""
    states = f"{figures.claimed} claimed, {figures.late} late, {figures.disputed} disputed"
    found: list[tuple[str, str | None]] = [("waiting", f"{waiting}{oldest} ({states})"), ("decided", str(decided))]
    audits = figures.audits
    if any(audits.values()):
        counted = audits["right"] + audits["wrong"] + audits["overdue"]
        share = f" ({audits['overdue'] / counted:.1%} of what counts)" if audits["overdue"] else ""
        states = f"{audits['right']} right, {audits['wrong']} wrong, {audits['overdue']} overdue{share}"
        found.append(("audits", f"{states}, {audits['waiting']} waiting; all of these are above too"))
    return found


def _reviewers_table(figures: QueueStats) -> Table:
    from rich import box
    from rich.table import Table

    kinds = ("approved", "edited", "rejected", "opinion", "skipped")
    table = Table(title="reviewers", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True, max_width=24, overflow="ellipsis")
    for kind in kinds:
        table.add_column(kind, no_wrap=True, justify="right")
    for name, counts in figures.by_reviewer.items():
        table.add_row(shown(one_line(name)), *(str(counts.get(kind, 0)) for kind in kinds))
    return table


def _agreement(figures: QueueStats) -> list[tuple[str, str | None]]:
    few = "too few cases to say"
    pairs = [
        (
            " and ".join(each.reviewers),
            f"{each.cases} cases, Cohen's kappa {few if each.kappa is None else f'{each.kappa:.2f}'}",
        )
        for each in figures.agreements
    ]
    alpha = few if figures.alpha is None else f"{figures.alpha:.2f}"
    pairs.insert(0, ("agreement", f"{figures.shared} cases with two opinions, Krippendorff's alpha {alpha}"))
    return [(name, text) for name, text in pairs]
