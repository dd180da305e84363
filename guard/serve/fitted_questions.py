"""What base models can be asked over HTTP: one question, which goes behind the solved examples of the calibration."""

from __future__ import annotations

from guard.records import Prompt
from guard.runtime.base_models import find_unfit_part, is_base_model
from guard.serve.request_errors import RequestError
from guard.serve.served_models import ModelRoute

_OWN_TEXT = "send a text of your own to /v1/completions"


def check_question(prompt: Prompt, target: ModelRoute) -> None:
    """Refuse chat messages that a model cannot be asked as in the calibration of its scorer.

    Args:
        prompt: the messages, with tools and template options.
        target: the model.

    Raises:
        RequestError: the scorer was fitted on questions behind solved examples, which have no place for a part of the
            prompt; or the model has no chat template, and its scorer was fitted on other texts.
    """
    if target.guard.scorer.artefact.prompting.completion:
        if unfit := find_unfit_part(prompt):
            raise _unfit(unfit, prompt, target.model.name)
    elif is_base_model(target.guard.engine.model):
        raise RequestError(
            f"'{target.model.name}' cannot be asked by messages",
            why="it has no chat template, and its scorer was not fitted on questions",
            fix=f"You can {_OWN_TEXT}. Who runs this server can fit a scorer on questions: guard calibrate --model "
            "MODEL --data QUESTIONS.jsonl --out scorer.json",
            code="unsupported_messages",
            param="messages",
        )


def _unfit(part: str, prompt: Prompt, name: str) -> RequestError:
    param = "tools" if prompt.tools else "chat_template_kwargs" if prompt.template_options else "messages"
    return RequestError(
        f"A request to '{name}' cannot have {part}",
        why="it is asked single questions, each behind solved examples, as its scorer was fitted",
        fix=f"Send one message of the role 'user' with the whole question, or {_OWN_TEXT}",
        code="unsupported_messages" if param == "messages" else "unsupported",
        param=param,
    )
