"""What is in the built wheel and sdist: the code, its data files, its metadata, and nothing else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from guard.cli.doctor import _PACKAGES

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "guard"

#: Files of the package that are no modules.
DATA = {
    str(path.relative_to(ROOT))
    for pattern in ("py.typed", "scoring/shipped/*.json", "**/*.j2", "console/static/*")
    for path in PACKAGE.glob(pattern)
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> set[str]:
    (file,) = dist.glob("ilis_guard-*.whl")
    return set(zipfile.ZipFile(file).namelist())


@pytest.fixture(scope="module")
def sdist(dist: Path) -> set[str]:
    (file,) = dist.glob("ilis_guard-*.tar.gz")
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def metadata(dist: Path) -> Message:
    (file,) = dist.glob("ilis_guard-*.whl")
    archive = zipfile.ZipFile(file)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_has_every_module_and_data_file(wheel: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    assert {"guard/py.typed", "guard/evaluation/report.html.j2"} < DATA
    assert modules | DATA <= wheel


def test_the_wheel_has_the_scorers_that_come_with_guard_and_no_other(wheel: set[str]) -> None:
    shipped = {f"guard/scoring/shipped/{path.name}" for path in (PACKAGE / "scoring" / "shipped").iterdir()}
    assert shipped
    assert {name for name in wheel if name.startswith("guard/scoring/shipped/")} == shipped


def test_the_wheel_has_the_policies(wheel: set[str]) -> None:
    policies = {f"guard/policy/builtin/{path.name}" for path in (ROOT / "policies").glob("*.yaml")}
    assert policies
    assert policies <= wheel


def test_the_wheel_has_nothing_but_guard(wheel: set[str]) -> None:
    """No tests at the top of site-packages, no bytecode, no leftovers of an editor."""
    assert {name.partition("/")[0].partition("-")[0] for name in wheel} == {"guard", "ilis_guard"}
    suffixes = {Path(name).suffix for name in wheel if name.startswith("guard/")}
    assert suffixes == {".py", ".css", ".js", ".json", ".svg", ".yaml", ".j2", ".typed"}


def test_the_sdist_is_the_whole_project(sdist: set[str]) -> None:
    assert {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")} | DATA <= sdist
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")} <= sdist
    top = {"pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff", "noxfile.py"}
    assert top | {"Makefile", "mkdocs.yml", "docs/index.md", "policies/balanced.yaml"} <= sdist
    assert not [name for name in sdist if name.endswith((".pyc", ".db", ".whl")) or name.startswith((".venv", "build"))]


def test_the_metadata_say_what_it_is(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (metadata["Name"], metadata["Version"]) == ("ilis-guard", project["version"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"]
    assert metadata.get_all("Project-URL")
    classifiers = metadata.get_all("Classifier") or []
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(classifiers)
    assert set(metadata.get_all("Provides-Extra") or []) == set(project["optional-dependencies"])


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(settings["project"]["optional-dependencies"])


def test_the_installation_page_lists_every_extra(extras: dict[str, list[str]]) -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == sorted(extras)


def test_nox_installs_the_wheel_with_every_extra(extras: dict[str, list[str]]) -> None:
    """The extra `vllm` has a session of its own, which installs vLLM's build for CPUs."""
    module = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    assigned = [node for node in module.body if isinstance(node, ast.Assign)]
    (uses,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "USES")
    assert {"vllm"} | set(ast.literal_eval(uses)) == {"", *extras}


def test_doctor_lists_every_extra(extras: dict[str, list[str]]) -> None:
    assert set(_PACKAGES) == set(extras)
    for extra, packages in _PACKAGES.items():
        brought = {re.split(r"[\[>=<]", each)[0] for each in extras[extra]}
        assert set(packages) <= brought, extra
