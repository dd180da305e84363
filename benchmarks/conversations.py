"""Prompts that grow: a conversation behind a long system prompt, and an agent loop with tools.

    python benchmarks/conversations.py [--model FILE.gguf] [--pairs 3] [--only talk | itself | work | plain | others]

Both against llama-cpp-python's own chat, which keeps the common prefix of two calls. Each side is fed its own answers,
as a program would do. The questions ask for more than the 24 tokens that an answer gets (12 in the agent loop), so that
both sides write as much; how many tokens each has written is printed. Milliseconds are per token of the answers,
prompts included.

llama-cpp-python keeps one conversation, so that guard's engine is fresh for each run. `plain` is the same without flash
attention, which llama-cpp-python does not use by default; `others` with two other conversations in the cache, with and
without it. `itself` compares the library with itself. `--only` runs a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
from measuring import CLOCK, Figure, Ratio, arguments, compared, itself, print_ratios, provenance, scorer_for, write

from guard.engines import embedded_model
from guard.engines.cores import usable_cores
from guard.engines.llama_cpp import LlamaCppEngine
from guard.policy.policy import load_policy
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard

#: What is compared.
PARTS = ("talk", "itself", "work", "plain", "others")
UNIT = "ms/token"
#: Tokens of an answer, in a conversation and in the agent loop, and turns that are enough to warm up.
ANSWER, CALL, WARM_UP = 24, 12, 2
_RULES = " ".join(
    f"Rule {number}: answer at length and politely, and never mention shelf number {number * 7}."
    for number in range(1, 41)
)
_QUESTIONS = (
    "Tell me all that you know about Paris.",
    "And about Madrid, in many sentences.",
    "Tell the story of Hamlet in detail.",
    "Explain step by step how to add 13 and 48.",
    "Describe the course of the Nile.",
    "Explain at length why the sky is blue.",
    "Name the days of the week, and what people do on each.",
    "Describe the Mona Lisa in every detail.",
)
_TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Read the {name} of a shop, in JSON.",
            "parameters": {"type": "object", "properties": {"page": {"type": "integer"}}, "required": ["page"]},
        },
    }
    for name in ("orders", "customers", "stock", "invoices")
)
#: Calls of the agent's model, and lines of each result that a tool gives.
_CALLS, _LINES = 6, 14

Message = dict[str, Any]
#: Answers messages, some of them with tools, by at most a number of tokens: the text, and how many tokens it has.
Chat = Callable[[Sequence[Message], Sequence[Mapping[str, Any]], int], tuple[str, int]]


@dataclass(frozen=True)
class Sides:
    """Guard's engine, fresh or with other conversations in its cache, and the library's own chat."""

    loaded: Callable[..., LlamaCppEngine]
    shipped: bool
    library: Chat
    pairs: int

    def guarded(
        self, run: Callable[[Chat, int], _Dialogue], number: int, *, others: int = 0, **options: Any
    ) -> _Dialogue:
        """Run a dialogue on a fresh engine with some options, after as many others."""
        with self.loaded(**options) as engine:
            guard = Guard(engine, scorer_for(engine, shipped=self.shipped), load_policy("shadow"))

            def chat(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], limit: int) -> tuple[str, int]:
                prompt = Prompt.chat(list(messages), tools=tuple(tools))
                attempt = guard.ask(prompt, limits=Limits(max_tokens=limit)).attempts[0]
                return attempt.answer or "", attempt.completion_tokens

            for other in range(others):
                run(chat, 1000 + 10 * number + other)
            return run(chat, number)


def measure(sides: Sides, part: str) -> list[Ratio | Figure]:
    """A part of the comparisons, turn 2 and later: the first reads the whole prompt on both sides."""
    talk, work = "conversation of eight turns, turns 2 to 8", "agent loop of six model calls, calls 2 to 6"
    plain: dict[str, Any] = {"flash_attention": False}
    if part == "talk":
        return _compared(talk, _conversation, sides, wanted="<= 1.10")
    if part == "itself":
        run = lambda pair: _conversation(sides.library, pair).ms_per_token  # noqa: E731
        return [itself(talk, run, unit=UNIT, pairs=sides.pairs)]
    if part == "work":
        return _compared(work, _agent, sides, wanted="<= 1.10")
    if part == "plain":
        return [
            _compared(f"{talk}, without flash attention", _conversation, sides, wanted="<= 1.10", **plain)[0],
            _compared(f"{work}, without flash attention", _agent, sides, wanted="<= 1.10", **plain)[0],
        ]
    crowded = f"{talk}, two others in the cache"
    return [
        _compared(crowded, _conversation, sides, others=2)[0],
        _compared(f"{crowded}, without flash attention", _conversation, sides, others=2, **plain)[0],
    ]


def library_chat(llama: Any) -> Chat:
    """Return the library's own chat."""

    def library(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], limit: int) -> tuple[str, int]:
        more: Any = {"tools": list(tools)} if tools else {}
        asked: Any = list(messages)
        answer: Any = llama.create_chat_completion(asked, max_tokens=limit, temperature=0.0, **more)
        return str(answer["choices"][0]["message"]["content"] or ""), answer["usage"]["completion_tokens"]

    return library


def _compared(
    what: str, run: Callable[[Chat, int], _Dialogue], sides: Sides, *, wanted: str = "", **settings: Any
) -> list[Ratio | Figure]:
    ran: list[_Dialogue] = []
    written = {"guard": 0, "the library": 0}

    def guarded(number: int) -> float:
        ran.append(sides.guarded(run, number, **settings))
        written["guard"] += sum(ran[-1].tokens[1:])
        return ran[-1].ms_per_token

    def library(number: int) -> float:
        theirs = run(sides.library, number)
        written["the library"] += sum(theirs.tokens[1:])
        return theirs.ms_per_token

    found = compared(
        what,
        "llama-cpp-python's own chat",
        guarded,
        library,
        unit=UNIT,
        pairs=sides.pairs,
        wanted=wanted,
    )
    with sides.loaded() as engine:
        tokens = len(engine.encode(Prompt.chat(ran[-1].messages, tools=tuple(ran[-1].tools))))
    note = "tokens of answers: " + ", ".join(f"{count} by {who}" for who, count in written.items())
    return [found, Figure(f"{what}: prompt at the end", tokens, "tokens", note)]


class _Dialogue:
    """What one run of a dialogue said, and the seconds and tokens of each answer."""

    def __init__(self, chat: Chat, system: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._chat, self.tools, self._limit = chat, tools, CALL if tools else ANSWER
        self.messages: list[Message] = [{"role": "system", "content": system}]
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    @property
    def ms_per_token(self) -> float:
        """Of all calls but the first, reading the prompts included."""
        return 1000 * sum(self.seconds[1:]) / sum(self.tokens[1:])

    def call(self, role: str, content: str) -> None:
        """Add a message, and what the model answers to it."""
        self.messages.append({"role": role, "content": content})
        started = CLOCK.now()
        answer, tokens = self._chat(self.messages, self.tools, self._limit)
        self.seconds.append(CLOCK.now() - started)
        self.tokens.append(tokens)
        self.messages.append({"role": "assistant", "content": answer})


def _conversation(chat: Chat, number: int) -> _Dialogue:
    """Eight turns. The run's number comes first, so that no run finds another's prompt in a cache."""
    run = _Dialogue(chat, f"Branch {number}. You are a helpful assistant of a city library. {_RULES}")
    for question in _QUESTIONS if number >= 0 else _QUESTIONS[:WARM_UP]:
        run.call("user", question)
    return run


def _agent(chat: Chat, number: int) -> _Dialogue:
    run = _Dialogue(chat, f"Shop {number}. Use the tools to find out what is asked, one call at a time.", _TOOLS)
    run.call("user", "Which customers wait for an order that is not in stock?")
    for page in range(1, _CALLS if number >= 0 else WARM_UP):
        lines = [
            f'{{"page": {page}, "row": {row}, "customer": "C{page}{row}", "open": {row % 2}}}' for row in range(_LINES)
        ]
        run.call("user", f"<tool_response>\n{chr(10).join(lines)}\n</tool_response>")
    return run


def main() -> None:
    parser = arguments(__doc__, pairs=3)
    parser.add_argument("--only", choices=PARTS)
    asked = parser.parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    threads = asked.threads or usable_cores()
    loaded = partial(LlamaCppEngine.load, model, threads=threads, trial_load=False)
    with loaded() as engine:
        context = engine.model.context_tokens
    llama = llama_cpp.Llama(str(model), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
    sides = Sides(loaded, asked.model is None, library_chat(llama), asked.pairs)
    found = [each for part in PARTS if asked.only in (None, part) for each in measure(sides, part)]
    llama.close()
    with loaded() as engine:
        about = provenance(engine)
    print_ratios(f"Growing prompts, {threads} threads", found, about=about)
    write({**about, "threads": threads, "found": [asdict(each) for each in found]}, asked.out)


if __name__ == "__main__":
    main()
