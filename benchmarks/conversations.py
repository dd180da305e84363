"""Prompts that grow: a conversation behind a long system prompt, and an agent loop with tools.

    python benchmarks/conversations.py [--model FILE.gguf] [--pairs 3]

Both against llama-cpp-python's own chat, which keeps the common prefix of two calls. Each side is fed its own answers,
as a program would do. The questions ask for more than the 24 tokens that an answer gets, so that both sides write as
much; where one of them stops earlier, seconds are compared per token of the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import CLOCK, Figure, Ratio, arguments, compared, print_ratios, provenance, scorer_for, write

from guard.engines import embedded_model
from guard.engines.llama_cpp import LlamaCppEngine, physical_cores
from guard.policy.policy import load_policy
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard

MAX_TOKENS = 24
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
_CALLS, _LINES = 6, 10

Message = dict[str, Any]
#: Answers messages, some of them with tools: the text, and how many tokens it has.
Chat = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], tuple[str, int]]


def measure(guard: Guard, model: Path, *, threads: int, pairs: int) -> list[Ratio | Figure]:
    """Both comparisons, turn 2 and later: the first reads the whole prompt on both sides."""
    import llama_cpp

    context = guard.engine.model.context_tokens
    llama = llama_cpp.Llama(str(model), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)

    def library(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
        more: Any = {"tools": list(tools)} if tools else {}
        asked: Any = list(messages)
        answer: Any = llama.create_chat_completion(asked, max_tokens=MAX_TOKENS, temperature=0.0, **more)
        return str(answer["choices"][0]["message"]["content"] or ""), answer["usage"]["completion_tokens"]

    def guarded(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
        prompt = Prompt.chat(list(messages), tools=tuple(tools))
        attempt = guard.ask(prompt, limits=Limits(max_tokens=MAX_TOKENS)).attempts[0]
        return attempt.answer or "", attempt.completion_tokens

    try:
        return [
            *_compared("conversation of eight turns, turns 2 to 8", _conversation, guarded, library, guard, pairs),
            *_compared("agent loop of six model calls, calls 2 to 6", _agent, guarded, library, guard, pairs),
        ]
    finally:
        llama.close()


def _compared(
    what: str, run: Callable[[Chat, int], _Dialogue], guarded: Chat, library: Chat, guard: Guard, pairs: int
) -> list[Ratio | Figure]:
    found = compared(
        what,
        "llama-cpp-python's own chat",
        lambda number: run(guarded, number).ms_per_token,
        lambda number: run(library, number).ms_per_token,
        unit="ms/token",
        pairs=pairs,
        wanted="<= 1.10",
    )
    last = run(guarded, pairs)
    engine = guard.engine
    assert isinstance(engine, LlamaCppEngine)
    tokens = len(engine.encode(Prompt.chat(last.messages, tools=tuple(last.tools))))
    note = f"{sum(last.tokens[1:])} tokens of answers on guard's side, {len(last.tokens) - 1} calls"
    return [found, Figure(f"{what}: prompt at the end", tokens, "tokens", note)]


class _Dialogue:
    """What one run of a dialogue said, and the seconds and tokens of each answer."""

    def __init__(self, chat: Chat, system: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._chat, self.tools = chat, tools
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
        answer, tokens = self._chat(self.messages, self.tools)
        self.seconds.append(CLOCK.now() - started)
        self.tokens.append(tokens)
        self.messages.append({"role": "assistant", "content": answer})


def _conversation(chat: Chat, number: int) -> _Dialogue:
    """Eight turns. The run's number comes first, so that no run finds another's prompt in a cache."""
    run = _Dialogue(chat, f"Branch {number}. You are a helpful assistant of a city library. {_RULES}")
    for question in _QUESTIONS:
        run.call("user", question)
    return run


def _agent(chat: Chat, number: int) -> _Dialogue:
    run = _Dialogue(chat, f"Shop {number}. Use the tools to find out what is asked, one call at a time.", _TOOLS)
    run.call("user", "Which customers wait for an order that is not in stock?")
    for page in range(1, _CALLS):
        lines = [
            f'{{"page": {page}, "row": {row}, "customer": "C{page}{row}", "open": {row % 2}}}' for row in range(_LINES)
        ]
        run.call("user", f"<tool_response>\n{chr(10).join(lines)}\n</tool_response>")
    return run


def main() -> None:
    asked = arguments(__doc__, pairs=3).parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    threads = asked.threads or physical_cores()
    with LlamaCppEngine.load(model, threads=threads, trial_load=False) as engine:
        guard = Guard(engine, scorer_for(engine, shipped=asked.model is None), load_policy("shadow"))
        found = measure(guard, model, threads=threads, pairs=asked.pairs)
        about = provenance(engine)
        print_ratios(f"Growing prompts, {threads} threads", found, about=about)
        write({**about, "threads": threads, "found": [asdict(each) for each in found]}, asked.out)


if __name__ == "__main__":
    main()
