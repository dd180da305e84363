"""Families of models against their own generate(): a sample here, all of them by benchmarks/architectures.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "benchmarks" / "architectures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["architectures"] = module
    spec.loader.exec_module(module)
    return module


#: Attention, recurrent and mixed layers, caches of their own, a cache that is left alone, and refusals.
SAMPLE = {
    "llama": "right",
    "gemma3_text": "right",
    "bamba": "right",
    "minimax": "right",
    "lfm2": "right",
    "gpt_oss": "right",
    "deepseek_v3": "right",
    "openai-gpt": "right",
    "dory": "right",
    "mllama": "refused",
    "granitemoeshared": "refused",
    "bert": "refused",
}


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_family_answers_as_its_generate_does_or_is_refused(kind: str) -> None:
    architectures = script()
    if kind not in architectures.model_types():
        pytest.skip(f"this transformers has no {kind}")
    found = architectures.verdict(kind)
    assert found["result"] == SAMPLE[kind], found.get("why")


def test_the_last_full_run_found_nothing_wrong_and_is_what_the_page_says() -> None:
    architectures = script()
    families = json.loads(architectures.RESULTS.read_text())["families"]
    assert [kind for kind, found in families.items() if found["result"] == "wrong"] == []
    assert {kind: families[kind]["result"] for kind in SAMPLE} == SAMPLE
    shown = architectures.PAGE.read_text().partition(architectures.BEGIN)[2].partition(architectures.END)[0]
    assert shown.strip() == architectures.page().strip()


def test_granite_without_experts_is_recorded_and_with_experts_refused() -> None:
    architectures = script()
    kind = "granitemoehybrid"
    assert architectures.verdict(kind)["result"] == "refused"
    architectures._OWN[kind] = {**architectures._OWN[kind], "num_local_experts": 0, "num_experts_per_tok": 0}
    found = architectures.verdict(kind)
    assert (found["result"], found.get("layer")) == ("right", "model.layers.3.shared_mlp"), found
