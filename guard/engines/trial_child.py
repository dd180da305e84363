"""The child process of `guard.engines.trial_load`: do with a file whatever an engine does with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from guard.engines.llama_cpp import LlamaCppEngine
from guard.engines.trial_load import SURVIVED
from guard.errors import GuardError
from guard.records import Floats, Limits, Prompt

#: Characters of one to four bytes, white space, control characters, and texts that are control tokens in some models.
_TEXT = (
    "".join(map(chr, range(1, 256))) + " Ünïcode 日本語 \U0001f600\U0001f1e9\U0001f1ea\n\n\t 1234567 <s></s><|im_end|>"
)
_TOKENS = 4


class _Discard:
    def observe(self, activations: Floats) -> None:
        """Nothing is kept."""


def serve(request: str) -> None:
    """Load the file that the request names, and say that the process has survived it.

    A `GuardError` is survival too: the load in the caller's process raises it again.
    """
    asked = json.loads(request)
    path = Path(os.fsdecode(bytes.fromhex(asked["path"])))
    try:
        with LlamaCppEngine.load(path, trial_load=False, **asked["options"]) as engine:
            exercise(engine)
    except GuardError:
        pass
    print(SURVIVED, flush=True)


def exercise(engine: LlamaCppEngine) -> None:
    """Generate, with and without the layers' activations, tokenize all kinds of text, and detokenize every token."""
    limits = Limits(max_tokens=_TOKENS)
    for text, observer in (("Hi the", _Discard()), (_TEXT[31:80], None)):
        engine.generate(Prompt.raw(text), limits=limits, observer=observer)
    vocabulary = engine._vocabulary
    for control in (True, False):
        vocabulary.tokenize(_TEXT, control=control)
    for token in range(vocabulary.size):
        vocabulary.piece(token)
        vocabulary.token_text(token)
