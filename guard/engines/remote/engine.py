"""The engine for served models: asks a server, and makes an answer with signals of what it streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from guard.checked import real_number, whole_number
from guard.engines.asked import RequestEngine
from guard.engines.constraint import accepts
from guard.engines.remote.address import Address, read_key
from guard.engines.remote.answer import RemoteAnswer, ServedIdentity
from guard.engines.remote.client import Client, RequestLimits
from guard.engines.remote.loop import RemoteLoop
from guard.engines.remote.wire import StreamPart, read_part, request_body
from guard.engines.request import Request
from guard.errors import EngineError, EngineTimeoutError, InputError, did_you_mean
from guard.records import CapturePoint, Generation, Limits, ModelInfo, Prompt, Sampling

_log = logging.getLogger("guard.engines.remote")

DEFAULT_SLOTS = 16
#: Tokens of prompt and answer together, where the server does not say.
DEFAULT_CONTEXT = 4096
#: Likeliest tokens at each token: what OpenAI and vLLM give at most.
DEFAULT_TOP_LOGPROBS = 20
#: Bytes of a prompt per token, for an estimate where the server does not count; few, so that budgets hold.
_BYTES_PER_TOKEN = 3

#: What a server is, by the owner that it names in its list of models.
_KINDS = {"vllm": "vLLM", "llamacpp": "llama.cpp server", "sglang": "SGLang", "library": "Ollama"}


class OpenAIEngine(RequestEngine):
    """A model behind OpenAI's chat completions. Build one with `load`."""

    capture_point: CapturePoint = "mlp"

    def __init__(
        self,
        client: Client,
        loop: RemoteLoop,
        served: ServedIdentity,
        info: ModelInfo,
        *,
        k: int,
        slots: int,
        seconds: float,
    ) -> None:
        """
        Args:
            client, loop: send requests, in a thread of their own.
            served: who answered when the engine was loaded.
            info: describes the model.
            k: likeliest tokens whose log-probabilities are read.
            slots: requests at the same time.
            seconds: of a request whose caller gives none.
        """
        super().__init__(loop)
        self._client, self._loop, self._served, self._info = client, loop, served, info
        self._k, self._slots, self._seconds = k, slots, seconds
        self.most_top_logprobs = k
        loop.answer = self._answer

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        api_key_file: str | Path | None = None,
        top_logprobs: int = DEFAULT_TOP_LOGPROBS,
        context_tokens: int | None = None,
        slots: int = DEFAULT_SLOTS,
        attempts: int = 4,
        timeout_s: float = 120.0,
        max_response_mb: int = 32,
        capture_point: CapturePoint = "mlp",
        template_date: str | None = None,
    ) -> OpenAIEngine:
        """Find a served model, and ask it one token to see whether it gives log-probabilities.

        Args:
            model: ``http://HOST:PORT/v1#NAME``; the name alone with a base URL; without a name, the only model there.
            base_url: of the server, such as ``http://127.0.0.1:8000/v1``.
            api_key_env: environment variable with the key; by default ``GUARD_OPENAI_API_KEY``, if it is set.
            api_key_file: a file with the key instead.
            top_logprobs: likeliest tokens whose log-probabilities are read at each token, at least 2. A scorer is
                bound to it.
            context_tokens: of prompt and answer together; by default what the server says, or 4,096.
            slots: requests at the same time.
            attempts: tries of a request that cannot reach the server, or that it is too busy for.
            timeout_s: seconds of a request whose caller gives none.
            max_response_mb: megabytes of a response, at most.
            capture_point, template_date: only their defaults: a server shows no layers, and writes its dates itself.

        Raises:
            InputError: an option, the address or the key cannot be used; or the server has several models.
            EngineError: the server cannot be reached, or gives no such log-probabilities.
        """
        _refuse_local(capture_point, template_date)
        k = whole_number("top_logprobs", top_logprobs, least=2, most=100)
        slots = whole_number("slots", slots, least=1, most=1000)
        limits = RequestLimits(
            whole_number("attempts", attempts, least=1, most=20),
            _positive("timeout_s", timeout_s),
            whole_number("max_response_mb", max_response_mb, least=1, most=1024) * 2**20,
        )
        address, key = Address.parse(str(model), base_url), read_key(api_key_env, api_key_file)
        if key is not None and address.is_in_the_clear:
            _log.warning("the key of a served model is sent to another machine over plain http: use https")
        client = Client(address, key, limits, connections=slots)
        loop = RemoteLoop(slots)
        loop.finally_ = client.close
        try:
            listed = loop.call(find_served(client, address.model))
            served = loop.call(_probe(client, listed["id"], k, limits.timeout_s))
        except BaseException:
            loop.close(lambda: None)
            raise
        context = whole_number("context_tokens", context_tokens or _context_length(listed), least=1)
        info = _describe(listed, served, k, context)
        return cls(client, loop, served, info, k=k, slots=slots, seconds=limits.timeout_s)

    @property
    def model(self) -> ModelInfo:
        """What is served, as far as the server says."""
        return self._info

    @property
    def at_once(self) -> int:
        """How many requests are sent at the same time."""
        return self._slots

    def check_template_options(self, options: Mapping[str, Any]) -> None:
        """Do nothing: the server has the chat template, and reads or ignores the options."""

    def _free(self) -> None:
        """Nothing is left: the connections are closed by the loop's last work."""

    def _encode(self, request: Request) -> None:
        """Refuse what cannot be asked, in the caller's thread."""
        request.interrupt.check()
        if request.completion is not None:
            raise InputError(
                "A served model cannot score an answer that exists already",
                why="servers give log-probabilities of their own answers only",
            )
        request_body(self._info.name, request.prompt, request.sampling, request.limits, k=self._k)

    # -- one answer, in the loop's thread ------------------------------------------------------

    async def _answer(self, request: Request) -> Generation:
        started, left = time.monotonic(), request.interrupt.remaining_s
        seconds = self._seconds if left is None else left
        try:
            async with asyncio.timeout(seconds):
                return await self._streamed(request, started, seconds)
        except TimeoutError:
            raise EngineTimeoutError(
                f"No answer within {seconds:.3g} s", fix="Raise timeout_s, or lower max_tokens"
            ) from None

    async def _streamed(self, request: Request, started: float, seconds: float) -> Generation:
        prompt = request.prompt
        answer = RemoteAnswer(
            self._served,
            stop=request.limits.stop,
            tools=bool(prompt.tools),
            top_logprobs=prompt.top_logprobs,
            observer=request.reader,
            on_token=request.on_token,
        )
        body = request_body(self._info.name, prompt, request.sampling, request.limits, k=self._k)
        events = self._client.events("/chat/completions", body, seconds)
        try:
            async for event in events:
                _show(request, request.context.run(answer.push, read_part(event, k=self._k)))
                if answer.stopped:  # a server that ends by itself has more to say: who answered, and its counts
                    break
        finally:
            await events.aclose()
        _show(request, request.context.run(answer.finish))
        found = answer.generation(
            sampling=request.sampling,
            estimate=len(str(body["messages"]).encode()) // _BYTES_PER_TOKEN,
            queue_s=started - request.interrupt.started,
            seconds=time.monotonic() - started,
        )
        _check_format(prompt, found)
        return found


def _show(request: Request, text: str) -> None:
    if text and request.streamed:
        request.outbox.put(text)


def _check_format(prompt: Prompt, found: Generation) -> None:
    """Refuse an answer without its response format: a server may ignore what it does not know."""
    wanted = prompt.response_format
    if wanted is not None and found.finish_reason != "length" and not accepts(wanted, found.text.strip()):
        raise EngineError(
            "The answer does not have its response format", why="the server did not hold it to the schema"
        )


# -- what is served ----------------------------------------------------------------------------


async def find_served(client: Client, name: str | None) -> Mapping[str, Any]:
    """Return a server's entry of a model.

    Raises:
        EngineError: the server cannot be reached, or does not list its models.
        InputError: it has no such model, or several and none is named.
    """
    listed = await client.get("/models")
    entries = listed.get("data") if isinstance(listed, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(each, Mapping) and "id" in each for each in entries):
        raise EngineError("The server does not list its models", fix="The address mostly ends with /v1")
    by_name = {str(each["id"]): each for each in entries}
    if name is None and len(by_name) != 1:
        raise InputError(
            f"The server has {len(by_name)} models", fix=f"Name one: URL#NAME. {did_you_mean('', by_name)}"
        )
    if name is not None and name not in by_name:
        raise InputError(f"The server has no model '{name}'", fix=did_you_mean(name, by_name))
    entry = next(iter(by_name.values())) if name is None else by_name[name]
    return {**entry, "id": str(entry["id"])}


async def _probe(client: Client, name: str, k: int, seconds: float) -> ServedIdentity:
    """Ask for one token; return who answers."""
    body = request_body(name, Prompt.chat("Say yes."), Sampling(), Limits(max_tokens=1), k=k)
    events = client.events("/chat/completions", body, seconds)
    parts: list[StreamPart] = [read_part(event, k=k) async for event in events]
    tokens = [token for part in parts for token in part.tokens]
    fault = tokens[0].fault if tokens else "its answers have none"
    if fault:
        raise EngineError(
            f"'{name}' gives no log-probabilities that can be used",
            why=fault,
            fix="Start the server so that it gives them, or ask for fewer: top_logprobs=5",
        )
    models, prints = ([getattr(part, key) for part in parts] for key in ("model", "fingerprint"))
    return ServedIdentity(next(filter(None, models), None), next(filter(None, prints), None))


def _context_length(listed: Mapping[str, Any]) -> int:
    meta = listed.get("meta") if isinstance(listed.get("meta"), Mapping) else {}
    sizes = (listed.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train"))  # type: ignore[union-attr]
    return next((size for size in sizes if isinstance(size, int) and size > 0), DEFAULT_CONTEXT)


def _listed_weights(listed: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a server lists of a model's weights: llama.cpp's their number, bytes and format, vLLM their folder."""
    meta = listed.get("meta")
    for name in ("n_params", "size", "ftype"):
        if isinstance(meta, Mapping) and isinstance(meta.get(name), int | str):
            yield f"{name} {meta[name]}"
    root = listed.get("root")
    if isinstance(root, str) and (folder := root.rstrip("/").rpartition("/")[2]):
        yield f"weights {folder}"


def _describe(listed: Mapping[str, Any], served: ServedIdentity, k: int, context_tokens: int) -> ModelInfo:
    kind = _KINDS.get(str(listed.get("owned_by")).lower(), "OpenAI-compatible server")
    who = f"{served.model or listed['id']} on {kind}, fingerprint {served.fingerprint or 'unknown'}"
    who += "".join(f", {said}" for said in _listed_weights(listed))
    unknown = sha256(b"unknown").hexdigest()
    return ModelInfo(
        name=str(listed["id"]),
        engine="openai",
        architecture="unknown",
        quantization="unknown",
        weights_sha256=unknown,
        tokenizer_sha256=unknown,
        chat_template_sha256=unknown,
        layers=0,
        width=0,
        context_tokens=context_tokens,
        served=f"{who}, top {k} log-probabilities",
    )


def _refuse_local(capture_point: str, template_date: str | None) -> None:
    if capture_point != "mlp":
        raise InputError(f"A served model shows no layers to read at '{capture_point}'", fix="Leave capture_point out")
    if template_date is not None:
        raise InputError("A served model's dates are written by its server", fix="Leave template_date out")


def _positive(name: str, value: float) -> float:
    number = real_number(name, value)
    if number <= 0:
        raise InputError(f"{name} must be above 0, got {number:g}")
    return number
