"""A guarded call that streams live: the answer is shown as it grows, and retracted if the policy rejects it."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from guard.engines.asked import RequestEngine
from guard.policy.guarantee import refuse_guarantees
from guard.records import Action, Attempt, Generation, Outcome
from guard.runtime.loop import AttemptPlan, Call, Result
from guard.runtime.steps import END, Emit, Pieces, Step, Steps, Stream
from guard.runtime.stream_monitor import RetractedError, StreamMonitor


def stream_steps(call: Call) -> Stream:
    """Emit the text for the caller, then the outcome: as it grows if the policy streams live, else once decided.

    Raises:
        PolicyError: a live stream of a policy that guarantees an error rate, which was certified on whole calls.
    """
    if call.state.policy.streaming == "live":
        refuse_guarantees(call.state.policy, caller="a live stream")
        live = LiveCall(call.resources, call.prompt, call.sampling, call.limits, call.metadata, call.state)
        yield from live.stream()
        return
    outcome: Outcome = yield from call.steps()
    if outcome.answer:
        yield Emit(outcome.answer)
    yield Emit(outcome)


@dataclass(slots=True)
class LiveCall(Call):
    """A call with one attempt, whose text is shown before the policy has decided about it."""

    live: bool = True

    def stream(self) -> Stream:
        """Emit the pieces of the model's answer as they come, then the outcome.

        The answer is scored as it grows, and stopped if the policy would not accept it. An answer that is not accepted
        in the end is retracted: the outcome has the action, and the text shown so far is invalid.
        """
        plan, shown = self._plan(), list[str]()
        try:
            result = yield from _live_result(plan, self._monitor(), shown)
        except RetractedError as stopped:
            yield from self._stop(plan, stopped, "".join(shown))
        except Exception as error:  # noqa: BLE001 - becomes the policy's action, or is raised there
            self._fail(plan, error)
        else:
            self._score_and_decide(plan, result)
        yield from self.record()
        outcome: Outcome = yield from self._deliver()
        yield Emit(outcome)

    def _monitor(self) -> StreamMonitor | None:
        """Return the monitor that stops the answer; None for a shadow policy."""
        if self.state.shadow:
            return None
        last = replace(self.state, usage=replace(self.state.usage, exhausted=True))
        return StreamMonitor(lambda score: last.decide(score).action is Action.ACCEPT, last.policy.score)

    def _stop(self, plan: AttemptPlan, stopped: RetractedError, shown: str) -> Steps[None]:
        """Decide about an answer that was stopped, by its score so far."""
        assert stopped.score is not None
        prompt_tokens = yield plan.prompt_tokens_step()
        self.state.note_use(prompt_tokens=prompt_tokens, completion_tokens=stopped.tokens, last=True)
        self.state.keep(
            Attempt(
                answer=shown,
                source=plan.name,
                score=stopped.score,
                decision=self.state.decide(stopped.score),
                prompt_tokens=prompt_tokens,
                completion_tokens=stopped.tokens,
                seconds=time.monotonic() - plan.started,
                sampling=plan.sampling,
            )
        )


def _live_result(
    plan: AttemptPlan, monitor: StreamMonitor | None, shown: list[str]
) -> Generator[Step | Emit, Any, Result]:
    """Emit an answer's pieces as they arrive; return the whole answer.

    Args:
        plan: of the guard's own model.
        monitor: stops an answer that the policy would not accept. Engines that are no `RequestEngine` cannot be
            stopped; their answers are decided about at the end.
        shown: gets each piece.
    """
    source = plan.source
    assert source is not None
    observer = source.observer()
    options: dict[str, Any] = {"sampling": plan.sampling, "limits": plan.limits, "observer": observer}
    if monitor is not None and source.scorer is not None and isinstance(source.engine, RequestEngine):
        options["on_token"] = monitor.for_answer(source.scorer, observer)
    stream, astream = source.engine.stream, source.engine.astream
    pieces = Pieces(partial(stream, plan.prompt, **options), partial(astream, plan.prompt, **options))
    generation: Generation | None = None
    yield pieces.open
    try:
        while (chunk := (yield pieces.next)) is not END:
            generation = chunk.generation
            if chunk.text:
                shown.append(chunk.text)
                yield Emit(chunk.text)
    finally:
        yield pieces.close
    assert generation is not None
    return Result(generation.text, generation.sampling, generation, observer)
