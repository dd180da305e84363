"""Whether two engines read the same tokens.

Each engine hashes what it has of a tokenizer, llama.cpp the keys of a GGUF and transformers its own tokenizer, so the
hashes of one tokenizer differ between engines. The token ids of the prompts and answers decide there.
"""

from __future__ import annotations

from collections.abc import Mapping

from guard.engines.asked import RequestEngine
from guard.engines.tokenizing import TokenizingEngine
from guard.errors import ScorerMismatchError
from guard.records import Prompt

#: Prompts, or prompts with a given answer, by the names of their rows.
ToRead = Mapping[str, tuple[Prompt, str | None]]
#: Token ids by the names of the rows.
TokenIds = Mapping[str, list[int]]


def read_tokens(engine: RequestEngine, rows: ToRead) -> TokenIds:
    """Return the token ids that an engine makes of each row; of an answer with the token that ends it.

    Raises:
        ScorerMismatchError: the engine does not show its tokens.
    """
    if not isinstance(engine, TokenizingEngine):
        raise ScorerMismatchError(
            f"The tokens of '{engine.model.name}' cannot be compared",
            why=f"the engine '{engine.model.engine}' does not show them",
            fix="Fit a scorer for this model with guard calibrate",
        )
    return {name: _tokens(engine, *row) for name, row in rows.items()}


def check_same_tokens(old: TokenIds, new: TokenIds) -> None:
    """Refuse two engines that read a row as different tokens.

    Raises:
        ScorerMismatchError: there is such a row; the first one is named.
    """
    for name, tokens in old.items():
        if tokens != new[name]:
            raise ScorerMismatchError(
                f"The two engines read '{name}' as different tokens",
                why=f"{_first_difference(tokens, new[name])}, and layers can be aligned on the same tokens only",
                fix="Leave the row out if it is an odd one, or fit a scorer for this engine with guard calibrate",
            )


def _tokens(engine: TokenizingEngine, prompt: Prompt, answer: str | None) -> list[int]:
    return engine.encode(prompt) if answer is None else engine.encode_answered(prompt, answer)


def _first_difference(old: list[int], new: list[int]) -> str:
    """Return where two lists of tokens differ, in words without the text."""
    at = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return f"one reads {len(old)} tokens, the other {len(new)}"
    return f"token {at + 1} is {old[at]} in one and {new[at]} in the other"
