"""Runs a guarded call of a chain: its attempts, the release of its answer, escalation and events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from guard.engines.witness import open_call
from guard.errors import EngineTimeoutError
from guard.langchain.attempts.attempt_run import (
    AttemptResult,
    attempt_result,
    attempt_steps,
    failure_for_policy,
    open_passthrough,
    own_containers,
)
from guard.langchain.attempts.callback_buffer import CallbackBuffer
from guard.langchain.chain.chain_call import ChainAttempt, ChainCall
from guard.langchain.chain.replies import gives_messages, reply_message
from guard.langchain.tracing import DECISION_EVENT, RETRACTED_EVENT, event_step, marked_event
from guard.records import Outcome
from guard.runtime.call_state import OWN_ENGINE
from guard.runtime.deadline import step_within
from guard.runtime.decision_log import log_decision
from guard.runtime.monitored import audit_steps
from guard.runtime.resources import escalation_step
from guard.runtime.steps import END, Emit, Pieces, Step, Steps, Stream
from guard.runtime.stream_monitor import RetractedError


@dataclass(frozen=True, slots=True)
class GuardedOutcome:
    """The result of a guarded chain with its outcome.

    Attributes:
        output: the chain's output, or what replaces it.
        outcome: the decision, its score, and every attempt. It contains no rejected text.
    """

    output: Any
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """One guarded call as a LangChain run.

    Attributes:
        call: state of the call.
        config: config for the children of the guarded run.
        options: keyword arguments for the chain.
    """

    call: ChainCall
    config: RunnableConfig
    options: dict[str, Any]

    def stream(self) -> Stream:
        """Emit the chunks for the caller: as they come where the policy streams live, else after the decision."""
        if self.call.state.shadow or self.call.state.policy.streaming == "live":
            yield from self._live_steps()
        else:
            for chunk in (yield from self.steps(stream=True)):
                yield Emit(chunk)

    @property
    def _event_config(self) -> RunnableConfig:
        return marked_event(self.config, self.call.state.decision.action)

    # -- decided before it is shown --------------------------------------------------------------

    def steps(self, *, stream: bool) -> Steps[list[Any]]:
        """Run attempts until the policy asks for no other, then carry out its last decision.

        Returns:
            The chunks for the caller, one unless streamed.
        """
        again = True
        while again:
            attempt = self.call.next_attempt()
            result = yield from self._attempt(attempt, stream=stream)
            try:
                again = self.call.record_result(attempt, result)
            except Exception:
                if not result.calls:  # no model has answered, so the error may appear in traces
                    yield from result.buffer.flush()
                raise
            if self.call.state.released:
                yield from result.buffer.flush()
            yield self._event(DECISION_EVENT)
        outcome = yield from self._escalation()
        return self._finish(outcome, stream=stream)

    def _attempt(self, attempt: ChainAttempt, *, stream: bool) -> Steps[AttemptResult]:
        """Run an attempt. A late fallback is left or cancelled; none of its callbacks has been sent."""
        state = self.call.state
        steps = attempt_steps(
            attempt.runnable,
            self.call.input,
            self.config,
            attempt.settings,
            stream=stream,
            options=self.options,
            buffered=not state.shadow,
            name=attempt.source,
        )
        if attempt.source == OWN_ENGINE:
            return (yield from steps)
        key = self.call.rules.fallbacks[attempt.source]
        try:
            result: AttemptResult = yield step_within(key, steps, state.seconds_left, name=attempt.source)
        except EngineTimeoutError as error:
            return AttemptResult((), error, (), CallbackBuffer([]))
        return result

    # -- shown before it is decided --------------------------------------------------------------

    def _live_steps(self) -> Stream:
        """Emit the chain's chunks at once; a rejected answer ends in an event and `RetractedError`."""
        self.call.live = not self.call.state.shadow
        attempt, hidden = self.call.next_attempt(), self.call.rules.return_outcome
        opened = open_call()
        log, config, context = open_passthrough(self.config, attempt.settings, opened)
        chunks: list[Any] = []
        error: Exception | None = None
        arguments = (own_containers(self.call.input), config)
        pieces = Pieces(
            partial(attempt.runnable.stream, *arguments, **self.options),
            partial(attempt.runnable.astream, *arguments, **self.options),
            context,
        )
        yield pieces.open
        try:
            while (chunk := (yield pieces.next)) is not END:
                chunks.append(chunk)
                if not hidden:
                    yield Emit(chunk)
        except Exception as failure:  # noqa: BLE001 - the policy decides what happens
            error = failure_for_policy(failure)
        finally:
            yield pieces.close
            opened.close()
        result = attempt_result(chunks, error, log, opened, input=self.call.input, buffer=CallbackBuffer([]))
        for chunk in (yield from self._end_live(attempt, result))[0 if hidden else len(chunks) :]:
            yield Emit(chunk)

    def _end_live(self, attempt: ChainAttempt, result: AttemptResult) -> Steps[list[Any]]:
        """Decide about an answer that was shown as it came, and carry the decision out."""
        self.call.record_result(attempt, result)
        yield self._event(DECISION_EVENT)
        outcome = yield from self._escalation()
        if not self.call.state.released:
            yield self._event(RETRACTED_EVENT)
            raise self._retracted(outcome)
        return self._finish(outcome, stream=True)

    def _retracted(self, outcome: Outcome) -> RetractedError:
        policy = self.call.state.policy.name
        error = RetractedError(f"The policy '{policy}' retracted the answer ({outcome.rule})", why=outcome.reason)
        error.outcome = outcome
        return error

    # -- the end -----------------------------------------------------------------------------------

    def _escalation(self) -> Steps[Outcome]:
        """Pass the case to the handlers that the policy names, if it escalates; return the outcome."""
        to, rules = self.call.state.escalate_to, self.call.rules
        yield from log_decision(rules.audit_log, self.call.state, self.call.escalation)
        yield from audit_steps(rules.monitor(), self.call.state, self.call.escalation)
        if not to:
            return self.call.outcome()
        delivery = yield escalation_step(self.call.escalation(), rules.handlers(), to, rules.handler_timeout_s)
        return self.call.outcome(delivery=delivery)

    def _event(self, name: str) -> Step:
        """Send an event about the last decision."""
        return event_step(name, self.call.event(), self._event_config)

    def _finish(self, outcome: Outcome, *, stream: bool) -> list[Any]:
        """Return the chunks for the caller: the chain's own, or what the policy puts in their place."""
        rules, result = self.call.rules, self.call.result
        if self.call.state.released:
            if result.error is not None:
                raise result.error
            return [GuardedOutcome(result.output, outcome)] if rules.return_outcome else list(result.chunks)
        self.call.state.check_abstention()
        value = self._replacement(outcome, chunk=stream and not rules.return_outcome)
        if rules.return_outcome:
            return [GuardedOutcome(value, outcome)]
        return [] if stream and value is None else [value]

    def _replacement(self, outcome: Outcome, *, chunk: bool) -> Any:
        """Return what the caller gets in place of a rejected answer."""
        rules, result = self.call.rules, self.call.result
        if rules.output is not None:
            return rules.output(outcome)
        messages = isinstance(result.output, BaseMessage) or (not result.chunks and gives_messages(rules.runnable))
        return reply_message(outcome, policy=rules.policy.name, chunk=chunk) if messages else outcome.answer
