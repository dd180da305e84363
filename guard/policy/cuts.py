"""What a cut leaves of an answer, and who cannot cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from guard.errors import PolicyError
from guard.policy.document import Cut
from guard.policy.policy import Policy
from guard.records import Action, Decision, Outcome
from guard.scores import Span
from guard.scoring.spans import without_spans


def released_spans(outcome: Outcome) -> tuple[Span, ...] | None:
    """Return the spans of the text that the caller gets, with their places in it; None where it is no model's.

    A rejected answer's spans quote it, so whoever hides the answer hides them, too.

    Args:
        outcome: of a guarded call.
    """
    last = outcome.attempts[-1]
    if outcome.action not in (Action.ACCEPT, Action.FALLBACK) or outcome.spans is None or outcome.answer is None:
        return None
    if outcome.answer == last.answer:
        return outcome.spans
    if not isinstance(last.decision.settings, Cut):
        return None
    return tuple(_placed([span for span in outcome.spans if span not in last.decision.spans], outcome.answer))


def _placed(spans: Iterable[Span], text: str) -> Iterator[Span]:
    """Yield spans, in order, with their places in a text that has all of them."""
    end = 0
    for span in spans:
        start = text.index(span.text, end)
        end = start + len(span.text)
        yield replace(span, start=start, end=end)


def released_text(answer: str | None, decision: Decision) -> str | None:
    """Return the text that an accepting decision gives to the caller: the answer, without the spans that it cuts.

    Examples:
        >>> from guard.records import Action
        >>> spans = (Span(8, 16, "Lyon: 9.", 0.9),)
        >>> released_text("Paris.\\n\\nLyon: 9.\\nNice.", Decision(Action.ACCEPT, "spans", "", 0.1, Cut(), spans))
        'Paris.\\n\\nNice.'
    """
    if answer is None or not isinstance(decision.settings, Cut):
        return answer
    return without_spans(answer, [(span.start, span.end) for span in decision.spans])


def refuse_cuts(policy: Policy, *, caller: str, why: str) -> None:
    """Refuse a policy that cuts spans, for a caller that cannot; a shadow policy changes nothing.

    Args:
        policy: to be used by the caller.
        caller: in words, such as ``a chain``.
        why: it cannot cut.
    """
    cuts = any(plan.spans and isinstance(plan.spans.rule.settings, Cut) for plan in policy.plans.values())
    if cuts and policy.mode == "enforce":
        raise PolicyError(
            f"The policy '{policy.name}' cuts spans, which {caller} cannot",
            why=why,
            fix="Write mark, retry or escalate, or give the policy to the model: ChatGuard(policy=...)",
        )
