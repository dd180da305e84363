"""``guard ask``: one question, one guarded answer."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.first_look import needs_a_scorer, show_first_look
from guard.cli.output import (
    AuditLogOption,
    CertificateOption,
    FallbackOption,
    ForceOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    ScorerOption,
    StoreOption,
    TemplateOption,
    console,
    print_json,
    template_options,
    user_functions,
)
from guard.cli.terminal import scores_line, shaded, shown, span_line
from guard.errors import ScorerError
from guard.outcome_export import readings, span_list

if TYPE_CHECKING:
    from guard.records import Outcome
    from guard.review.store import Store
    from guard.scores import Score

#: Without a policy for spans, those above this are shaded.
MORE_LIKELY_WRONG = 0.5

#: Exit codes if the caller did not get an answer.
EXIT_CODES = {"abstain": 10, "escalate": 11}


@loads_a_model()
def ask(
    ctx: typer.Context,
    question: Annotated[str, typer.Argument(help="Question to answer; - reads standard input.")],
    model: ModelOption = "smollm2",
    scorer: ScorerOption = None,
    policy: PolicyOption = "balanced",
    certificate: CertificateOption = None,
    route: Annotated[str | None, typer.Option(help="Route of the policy, such as medical.")] = None,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    store: StoreOption = None,
    fallback: FallbackOption = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODULE:FUNCTION", help="Function that handles NAME in the policy; repeatable."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Token limit of an answer.")] = None,
    template_option: TemplateOption = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Time limit of each attempt, in seconds.")] = None,
    force: ForceOption = False,
    audit_log: AuditLogOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question, score the answer, and act by the policy.

    Exit code 0 with an answer, 10 when the policy abstained, 11 when it escalated. A model without a scorer gives a
    first look: its answer with label-free signals, about which no policy decides, and exit code 3.
    """
    from guard.engines import EMBEDDED
    from guard.runtime.guard import Guard

    text = sys.stdin.read() if question == "-" else question
    if scorer is None and model != EMBEDDED and not needs_a_scorer(ctx):
        options = {
            "max_tokens": max_tokens,
            "timeout_s": timeout,
            "template_options": template_options(template_option),
        }
        show_first_look(text, model, engine, engine_options, options, as_json=as_json)
        raise typer.Exit(ScorerError.exit_code)
    with (
        _opened(store) if audit_log else nullcontext() as opened,
        Guard.load(
            model,
            scorer=scorer,
            policy=policy,
            engine=engine,
            engine_options=engine_options,
            store=opened or store,
            audit_log=opened.audit_log() if opened else None,
            fallbacks=user_functions("fallback", fallback),
            handlers=user_functions("handler", handler),
            force_scorer=force,
            certificate=certificate,
            template_options=template_options(template_option),
            all_scores=True,
        ) as guard,
    ):
        own = guard.limits
        limits = replace(own, max_tokens=max_tokens or own.max_tokens, timeout_s=timeout)
        outcome = guard.ask(text, route=route, limits=limits)
        of_spans = guard.policy.plan(route).spans
    if as_json:
        print_json(outcome.to_dict())
    else:
        _print(outcome, of_spans.above if of_spans else MORE_LIKELY_WRONG)
    raise typer.Exit(EXIT_CODES.get(outcome.action.value, 0))


def _opened(store: str | None) -> Store:
    from guard.review.store import Store

    return Store.open(store)


def _print(outcome: Outcome, limit: float) -> None:
    out = console()
    _print_answer(outcome, limit)
    out.print()
    score = outcome.attempts[-1].score if outcome.attempts else None
    out.print(shown(f"p(wrong) {_percent(outcome.p_wrong, score)}  {trail(outcome)}  rule: {outcome.rule}", "dim"))
    out.print(shown(outcome.reason, "dim"))
    if score and score.scores:
        out.print(shown(f"scores: {scores_line(readings(score.scores), score.decides)}", "dim"))
    if score and score.unlike:
        out.print(shown(f"unlike the answers of the calibration: {score.unlike}", "yellow"))
    for name, receipt in outcome.receipts.items():
        if name != "review":
            out.print(shown(f"{name}: {receipt}", "dim"))
    if "review" in outcome.escalated_to:
        out.print(shown(f"Waiting for a person: guard review show {outcome.decision_id}", "dim"))
    for error in outcome.errors:
        out.print(shown(f"failure: {error}", "red"))
    uncalibrated = [attempt for attempt in outcome.attempts if attempt.score and not attempt.score.calibrated]
    if any(attempt.sampling.is_greedy for attempt in uncalibrated):
        out.print("uncalibrated: this scorer was fitted on another model", style="yellow")
    elif outcome.attempts[-1] in uncalibrated:
        out.print("uncalibrated: this answer was sampled, and calibration answers are greedy", style="yellow")


def _print_answer(outcome: Outcome, limit: float) -> None:
    """Print the answer; spans with a p_wrong above the limit are shaded, and listed for those who see no colours."""
    from guard.policy.cuts import released_spans

    out = console()
    if outcome.answer is None:
        out.print("(no answer)")
        return
    above = [span for span in released_spans(outcome) or () if span.p_wrong > limit]
    out.print(shaded(outcome.answer, [(span.start, span.end) for span in above], "black on yellow"))
    for span in span_list(above) or ():
        out.print(shown(f"likely wrong: {span_line(span)}", "yellow"))
    cut = outcome.attempts[-1].decision.spans if outcome.answer != outcome.attempts[-1].answer else ()
    if outcome.accepted and cut:
        out.print(shown(f"cut: {len(cut)} of {len(outcome.spans or ())} spans", "yellow"))


def trail(outcome: Outcome) -> str:
    """Return the actions in order, such as ``retry, accept``."""
    steps = [attempt.decision.action.value for attempt in outcome.attempts[:-1]]
    last = f"accept (would {outcome.would_be.action})" if outcome.would_be else outcome.action.value
    return ", ".join([*steps, last])


def _percent(p_wrong: float | None, score: Score | None) -> str:
    figure = "unknown" if p_wrong is None else f"{p_wrong:.0%}"
    return f"{figure} (uncalibrated)" if score and not score.calibrated else figure
