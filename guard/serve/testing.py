"""Test helper: asserts that no rejected text leaves a server by any of its HTTP channels.

    def test_nothing_leaks():
        assert_nothing_leaks_over_http("http://127.0.0.1:8080", "Which code?", model="smollm2", secrets=["7-4-1"])

The question is asked once per channel: whole and as streams, in each API. Bodies, headers and status lines, what the
server says of its decisions and reviews, and its metrics are searched for the secrets and any longer piece of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from guard.errors import InputError, did_you_mean
from guard.runtime.leak_search import Seen


@dataclass(frozen=True, slots=True)
class _Channel:
    """One way to ask.

    Attributes:
        path: of the endpoint.
        body: the request's, beside the model, by the question.
    """

    path: str
    body: Callable[[str], dict[str, Any]]


def _chat(**more: Any) -> _Channel:
    return _Channel(
        "/v1/chat/completions", lambda question: {"messages": [{"role": "user", "content": question}], **more}
    )


#: Channels by which text can leave a server, by name.
CHANNELS: Mapping[str, _Channel] = {
    "chat": _chat(),
    "chat with log-probabilities": _chat(logprobs=True, top_logprobs=3),
    "chat stream": _chat(stream=True, stream_options={"include_usage": True}, guard={"hold": "comments"}),
    "chat stream behind headers": _chat(stream=True, guard={"hold": "headers"}),
    "completion": _Channel("/v1/completions", lambda question: {"prompt": question}),
    "completion stream": _Channel(
        "/v1/completions", lambda question: {"prompt": question, "stream": True, "guard": {"hold": "comments"}}
    ),
    "response": _Channel("/v1/responses", lambda question: {"input": question}),
    "response stream": _Channel("/v1/responses", lambda question: {"input": question, "stream": True}),
}


def assert_nothing_leaks_over_http(
    url: str,
    question: str,
    *,
    model: str,
    secrets: Collection[str],
    allowed: Iterable[str] = (),
    channels: Collection[str] | None = None,
    key: str | None = None,
    timeout_s: float = 120.0,
) -> Seen:
    """Assert that a running server keeps secrets, by asking it once per channel.

    Streams are asked for held, so that a policy that streams live keeps them, too.

    Args:
        url: of the server, without ``/v1``.
        question: whose answer the policy rejects.
        model: an id of ``/v1/models``, such as ``smollm2:medical``.
        secrets: texts that must not leave, such as the rejected answer.
        allowed: texts that may leave although they share pieces with a secret. The question may, too.
        channels: names from `CHANNELS`; by default all of them.
        key: an API key, where the server needs one.
        timeout_s: seconds of each request.

    Returns:
        All texts that left the server.

    Raises:
        AssertionError: something leaked; the text names what, where and by which channel.
        InputError: an unknown channel, or no secret that differs from the question.
        OSError: the server cannot be reached.
    """
    chosen = [*(CHANNELS if channels is None else channels)]
    for name in chosen:
        if name not in CHANNELS:
            raise InputError(f"There is no channel '{name}'", fix=did_you_mean(name, CHANNELS))
    asking = _Asking(url.rstrip("/"), {} if key is None else {"authorization": f"Bearer {key}"}, timeout_s, Seen())
    for name in chosen:
        channel = CHANNELS[name]
        asking.see(name, channel.path, {"model": model, **channel.body(question)})
    for decision_id in sorted(asking.decisions()):
        asking.see("decision", f"/v1/guard/decisions/{decision_id}")
        asking.see("review", f"/v1/guard/reviews/{decision_id}")
    asking.see("metrics", "/metrics")
    asking.seen.check(secrets, allowed=[*allowed, question])
    return asking.seen


@dataclass(frozen=True, slots=True)
class _Asking:
    """Requests to one server, and all that came back."""

    url: str
    headers: Mapping[str, str]
    timeout_s: float
    seen: Seen

    def see(self, channel: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Make a request, and record its response, errors as well: its raw text, and every text in its JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"content-type": "application/json", **self.headers})
        try:
            response = urlopen(request, timeout=self.timeout_s)
        except HTTPError as error:
            response = error
        with response:
            text = response.read().decode(errors="replace")
            self.seen.add(channel, "status", str(response.reason))
            self.seen.add(channel, "header", dict(response.headers))
        self.seen.add(channel, "raw", text)
        for part in _parts(text):
            self.seen.add(channel, "body", part)

    def decisions(self) -> set[str]:
        """Return the ids of the decisions that came back."""
        found = {
            text for (_, place), texts in self.seen.texts.items() if place.endswith("decision_id") for text in texts
        }
        return {text for text in found if text}


def _parts(text: str) -> Iterator[Any]:
    """Yield what a body says: its JSON, or that of each event of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    for each in lines or [text]:
        try:
            yield json.loads(each)
        except ValueError:
            yield each
