"""A ``vllm serve`` that knows nothing of guard, behind the engine ``openai``: asked, calibrated, guarded, streamed.

Runs where vLLM is installed (`nox -s vllm`). tests/engines/recorded has what it said, for tests that run everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import needs_vllm  # noqa: F401 - skips this module where vLLM is not installed

# isort: split
import pytest
from endpoint import scorer_for
from exported_model import export_smollm2
from served_like_local import QUESTION, check_signals, check_streams_stop_strings_and_formats
from sums import addition_rows
from vllm_program import vllm_serve, wait_until_up

import guard
from guard import Guard, load_engine
from guard.engines.asked import RequestEngine
from guard.errors import InputError, PromptTooLongError
from guard.policy.policy import parse_policy
from guard.records import Action, Limits, Outcome, Prompt

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(1800)]

LIMITS = Limits(max_tokens=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_smollm2(tmp_path_factory.mktemp("plain") / "smollm2")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    log = folder.parent / "log"
    with vllm_serve(folder, log, "--served-model-name", "small") as (process, address):
        wait_until_up(process, f"{address}/health", log)
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[RequestEngine]:
    with load_engine(url) as found:
        yield found


def test_it_is_known_by_what_it_says(engine: RequestEngine) -> None:
    assert engine.model.served is not None
    assert "small on vLLM, fingerprint" in engine.model.served
    assert "weights smollm2, top 20 log-probabilities" in engine.model.served
    assert engine.model.context_tokens == 1024


def test_answers_and_signals_are_those_of_the_same_weights_here(engine: RequestEngine, folder: Path) -> None:
    # Not those of the embedded file: its quantized weights prefer another first token by a hair.
    check_signals(engine, LIMITS, threads=1, model=folder)


def test_streams_stop_strings_and_formats(engine: RequestEngine) -> None:
    check_streams_stop_strings_and_formats(engine, LIMITS)


def test_a_prompt_that_is_too_long_is_named_so(engine: RequestEngine) -> None:
    with pytest.raises(PromptTooLongError):
        engine.generate(Prompt.chat("word " * 2000))


def test_a_model_that_is_not_served_gets_a_hint(url: str) -> None:
    with pytest.raises(InputError, match="Did you mean 'small'"):
        load_engine(f"{url}#smal")


@pytest.mark.parametrize("streaming", ["hold", "live"])
@pytest.mark.parametrize("rule", ["accept: {}", "abstain: {text: I cannot say.}"])
def test_held_and_live_answers_are_guarded(engine: RequestEngine, streaming: str, rule: str) -> None:
    policy = parse_policy(f"{{version: 1, name: a, streaming: {streaming}, rules: [{{{rule}}}]}}")
    *pieces, outcome = Guard(engine, scorer_for(engine), policy).stream(QUESTION, limits=LIMITS)
    assert isinstance(outcome, Outcome)
    assert outcome.action is (Action.ACCEPT if rule.startswith("accept") else Action.ABSTAIN)
    assert outcome.p_wrong is not None
    assert 0 < outcome.p_wrong < 1
    assert ("Paris" in "".join(map(str, pieces))) is (streaming == "live" or outcome.accepted)


def test_answers_at_the_same_time_are_each_its_own(engine: RequestEngine) -> None:
    prompts = [Prompt.chat(f"Repeat this word: {word}") for word in ("Peru", "Italy", "Japan", "Spain")]
    alone = [engine.generate(prompt, limits=LIMITS).text for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = [*pool.map(lambda prompt: engine.generate(prompt, limits=LIMITS).text, prompts)]
    assert together == alone


def test_a_scorer_is_calibrated_on_it_and_used(url: str, tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text(addition_rows(), "utf-8")
    out = tmp_path / "served.json"
    guard.calibrate(tmp_path / "sums.jsonl", out=out, model=url, max_tokens=24)
    policy = parse_policy("{version: 1, name: a, rules: [accept]}")
    with Guard.load(url, scorer=out, policy=policy) as guarded:
        score = guarded.ask("What is 2 plus 3?").attempts[-1].score
    assert score is not None
    assert score.calibrated
    assert 0 < score.p_wrong < 1
