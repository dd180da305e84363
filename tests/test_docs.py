"""The documentation's claims that a machine can check."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
from pages import NAMES, PAGES
from pydantic import BaseModel

from guard.policy import Certificate, load_policy, parse_policy
from guard.scoring import Artefact, load_scorer
from guard.scoring.shelf import shipped_folder

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(shipped_folder().glob("*.json"))

#: Words of a private dialect, each of which has a plain one.
DIALECT = ("told", "heard", "silent", "loud", "loudest", "anew", "befell", "goes on", "so many", "is to be")
DIALECT += ("beyond chance", "others to one", "novelty", "ledger", "read-out", "rehearsal")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_pages_of_all_folders_are_checked() -> None:
    assert {"README.md", "docs/index.md", "docs/reference/policies.md", "docs/how-to/langchain.md"} <= set(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose(page))
    local = [(page.parent / file if file else page, anchor) for file, anchor in links if "://" not in file]
    assert [str(file) for file, _ in local if not file.exists()] == []
    assert [f"{file}#{anchor}" for file, anchor in local if anchor and anchor not in anchors(file)] == []


def test_the_site_renders_what_the_pages_use() -> None:
    """Markdown that no extension knows is shown as it is written, without a warning."""
    extensions = re.findall(r"^  - ([\w.]+)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    marks = {"def_list": r"^:   ", "admonition": r"^!!! ", "tables": r"^\| --- ", "pymdownx.superfences": r"^```"}
    used = {
        name for name, mark in marks.items() if any(re.search(mark, page.read_text("utf-8"), re.M) for page in PAGES)
    }
    assert used == set(marks)
    assert used <= set(extensions)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """From the repository, from the package (`engines/engine_loop.py`) or from the tests."""
    named = re.findall(r"`([\w-]+(?:/[\w.-]+)+\.(?:py|toml|md|json|sh|yaml))\b", page.read_text(encoding="utf-8"))
    roots = (ROOT, ROOT / "guard", ROOT / "tests")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_blank_is_left_unfilled(page: Path) -> None:
    assert re.findall(r"@[A-Z]{3,}@", page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_use_the_fields_words(page: Path) -> None:
    text = " ".join(prose(page).split())
    assert re.findall(rf"\b(?:{'|'.join(DIALECT)})\b", text, re.IGNORECASE) == []


@pytest.mark.parametrize(
    "file", ["guard/**/*.py", "docs/evidence/notes.json", "policies/*.yaml", "examples/*.py", "benchmarks/*.py"]
)
def test_sources_use_the_fields_words(file: str) -> None:
    """Docstrings, comments, messages and names."""
    sources = [source for source in ROOT.glob(file) if source.name != "phrase_words.py"]  # which lists words of answers
    assert sources
    text = re.compile(rf"\b(?:{'|'.join(DIALECT)})\b", re.IGNORECASE)
    found = {str(source.relative_to(ROOT)): text.findall(source.read_text(encoding="utf-8")) for source in sources}
    assert {name: words for name, words in found.items() if words} == {}


def test_nothing_tells_users_to_install_the_other_distribution() -> None:
    """The name ``guard`` on the index belongs to another project, whose module would shadow ours."""
    command = [
        "git",
        "grep",
        "-nIE",
        r"(^|[^-_.a-z\"'])guard\[[a-z]|install (-[a-zA-Z]+ )*['\"]?guard(\[|['\" ]|$)",
        "--",
        ".",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    assert [line for line in found.stdout.splitlines() if not line.startswith("tests/test_docs.py")] == []


def test_the_readme_is_short_and_says_first_what_nobody_else_has() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    first = " ".join(lines[2 : lines.index("", 2)])
    assert "fails closed" in first
    assert "leaks" in first
    assert "streaming" in first


def test_the_readme_links_every_how_to() -> None:
    """Nobody finds what only another page mentions."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {f"docs/how-to/{page.name}" for page in (ROOT / "docs" / "how-to").glob("*.md")}
    assert len(pages) > 20
    assert {page for page in pages if f"({page}" not in text} == set()
    assert "docs/how-to/calibration.md#early-stages" in text


def test_the_readme_rounds_the_measured_cost() -> None:
    medians = [
        json.loads((ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))["ratios"][0]["median"]
        for file in runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["COSTS"]
    ]
    most = f"{max(medians) - 1:.0%}".replace("%", " %")
    assert f"at most {most} to the library's own generation time" in prose(ROOT / "README.md").replace("\n", " ")


def test_the_readme_shows_the_balanced_policy_as_it_is() -> None:
    (shown,) = blocks(ROOT / "README.md", "yaml")
    assert parse_policy(shown).sha256 == load_policy("balanced").sha256


@pytest.mark.model
def test_the_readmes_five_lines_run(smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_STORE", str(tmp_path / "reviews.db"))
    (program,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)  # noqa: S102 - our own text
    assert "Paris" in str(getattr(names["outcome"], "answer"))  # noqa: B009


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_documented_figures_are_those_of_the_shipped_scorers(file: Path) -> None:
    metrics = load_scorer(file).artefact.metrics
    row = "| {name} | {n} | {wrong:.0%} | {auroc:.3f} | {auprc:.3f} | {brier:.3f} | {ece:.3f} |"
    shown = (ROOT / "docs" / "how-to" / "calibration.md").read_text(encoding="utf-8")
    for name, key in (("guard", "guard"), ("ILIS", "ilis"), ("log-probabilities alone", "log-probabilities")):
        assert row.format(name=name, **metrics[key]).replace("%", " %") in shown


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_page_of_the_shelf_lists_each_shipped_scorer(file: Path) -> None:
    shown = (ROOT / "docs" / "how-to" / "scorers.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w.-]+)` \|", shown, re.MULTILINE).count(file.stem) == 1


def test_figures_are_those_of_the_last_results() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")
    documents = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["filled"]()
    assert len(documents) == 4
    figures = json.loads((ROOT / "docs" / "evidence" / "figures.json").read_text(encoding="utf-8"))
    assert not [command for command in figures["provenance"]["commands"] if "/" in command]  # folders of one machine
    for document, text in documents.items():
        assert text == document.read_text(encoding="utf-8"), document


@pytest.mark.parametrize(("section", "record"), [("Scorer", Artefact), ("Certificate", Certificate)])
def test_artefact_keys_are_those_of_the_files(section: str, record: type[BaseModel]) -> None:
    text = (ROOT / "docs" / "reference" / "artefacts.md").read_text(encoding="utf-8")
    described = re.findall(r"^\| `(\w+)` \|", text.partition(f"## {section}\n")[2].partition("\n## ")[0], re.MULTILINE)
    assert described == [field.alias or name for name, field in record.model_fields.items()]


def test_every_package_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "reference" / "python-api.md").read_text(encoding="utf-8")
    packages = {face.parent.name for face in (ROOT / "guard").glob("*/__init__.py")} - {"cli", "files"}
    assert packages <= set(re.findall(r"^::: guard\.(\w+)$", page, re.MULTILINE))


def test_the_drawing_is_of_the_imports() -> None:
    pytest.importorskip("grimp", reason="comes with import-linter")
    folder = ROOT / "docs" / "explanation"
    drawn = runpy.run_path(str(folder / "draw_architecture.py"))["drawing"]()
    assert drawn == (folder / "architecture.svg").read_text(encoding="utf-8"), "run draw_architecture.py"


def test_the_documented_number_of_graded_pairs_is_theirs() -> None:
    lines = (ROOT / "tests" / "data" / "graded_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    right, wrong = ([pair for pair in pairs if pair["right"] is kind] for kind in (True, False))
    missed, passed = (sum("misjudged" in pair for pair in kind) for kind in (right, wrong))
    text = " ".join(prose(ROOT / "docs" / "reference" / "data.md").split())
    assert f"{len(pairs):,} labelled answers" in text
    assert f"of {len(right)} right ones they miss {missed}, of {len(wrong):,} wrong ones they pass {passed}" in text


# -- what guard refuses --------------------------------------------------------------------------

REFUSALS = (ROOT / "docs" / "evidence" / "refusals.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_of_refusals_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", REFUSALS)
    assert len(named) > 100

    def is_there(file: str, name: str) -> bool:
        path = ROOT / "tests" / file
        return (
            path.is_file() and re.search(rf"^(async def|def|class) {name}\b", path.read_text("utf-8"), re.M) is not None
        )

    assert [f"{file}::{name}" for file, name in named if not is_there(file, name)] == []


def test_the_page_of_refusals_leaves_out_no_number_and_names_mutants_that_are_there() -> None:
    rows = [line.strip("| ").split(" | ") for line in REFUSALS.splitlines() if re.match(r"\| \d", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 47))
    listed = tomllib.loads((ROOT / "tests" / "mutants" / "list.toml").read_text("utf-8"))["mutant"]
    named = {name for row in rows for name in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row[-1])}
    assert len(named) > 40
    assert named <= {mutant["name"] for mutant in listed}
