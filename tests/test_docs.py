"""The documentation's claims that a machine can check."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from guard.policy.policy import load_policy, parse_policy
from guard.scoring.scorer import load_scorer, shipped_scorer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_blank_is_left_unfilled(page: Path) -> None:
    assert re.findall(r"@[A-Z]{3,}@", page.read_text(encoding="utf-8")) == []


def test_the_readme_shows_the_balanced_policy_as_it_is() -> None:
    (shown,) = blocks(ROOT / "README.md", "yaml")
    assert parse_policy(shown).sha256 == load_policy("balanced").sha256


@pytest.mark.model
def test_the_readmes_three_lines_run(smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_STORE", str(tmp_path / "reviews.db"))
    program = blocks(ROOT / "README.md", "python")[0]
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)  # noqa: S102 - our own text
    assert "Paris" in str(getattr(names["outcome"], "answer"))  # noqa: B009


def test_the_documented_figures_are_the_shipped_scorers() -> None:
    metrics = load_scorer(shipped_scorer()).artefact.metrics
    row = "| {name} | {n} | {wrong:.0%} | {auroc:.3f} | {auprc:.3f} | {brier:.3f} | {ece:.3f} |"
    told = (ROOT / "docs" / "how-to" / "calibration.md").read_text(encoding="utf-8")
    for name, key in (("combined", "test"), ("log-probabilities alone", "baseline")):
        assert row.format(name=name, **metrics[key]).replace("%", " %") in told
    told = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    line = "AUROC of {auroc:.3f}, a Brier score of {brier:.3f} and an ECE of {ece:.3f} ({n:,} questions;"
    assert line.format(**metrics["test"]) in told
    assert "log-probabilities alone {auroc:.3f}, {brier:.3f} and {ece:.3f};".format(**metrics["baseline"]) in told


def test_figures_are_those_of_the_last_results() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")
    documents = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["filled"]()
    assert len(documents) == 4
    for document, text in documents.items():
        assert text == document.read_text(encoding="utf-8"), document


def test_the_shipped_scorer_is_small() -> None:
    assert shipped_scorer().stat().st_size < 1_000_000
