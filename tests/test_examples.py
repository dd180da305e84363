"""Every example is run, on the embedded model, as a user would run it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from guard.langchain.chat.shared_engines import close_engines
from guard.records import Action

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2_path")]


@pytest.fixture(scope="module", autouse=True)
def _frees_engines() -> Iterator[None]:
    yield
    close_engines()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # models with annotations look their module up
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str, cwd: Path, code: int = 0) -> str:
    """Run an example in a process of its own."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert names
    assert [name for name in names if f'"{name.removesuffix(".py")}"' not in text] == []


def test_guarded_questions(tmp_path: Path) -> None:
    example = load("guarded_qa")
    answers = example.main(["What is the capital of France?"])
    assert [answer.outcome.action for answer in answers] == [Action.ACCEPT]
    assert "Paris" in answers[0].output
    assert "I do not know." in run("guarded_qa", "Who was the third person to swim across Lake Onega?", cwd=tmp_path)


def test_retrieval_finds_the_text_and_makes_the_model_surer(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("retrieval")
    store = example.InMemoryVectorStore.from_texts(example.TEXTS, example.TfIdf(example.TEXTS))
    found = [store.similarity_search(question, k=1)[0].page_content for question in example.QUESTIONS[:3]]
    assert found == [example.TEXTS[0], example.TEXTS[2], example.TEXTS[3]]
    answers = example.main([example.QUESTIONS[2], example.QUESTIONS[3]])
    alone, informed = answers[0]
    assert informed.output == "The chemical symbol of tungsten is W."
    assert informed.outcome.p_wrong < alone.outcome.p_wrong
    assert [answer.outcome.action for answer in answers[1]] == [Action.ABSTAIN, Action.ABSTAIN]
    abstained = [answer for pair in answers for answer in pair if answer.outcome.action is Action.ABSTAIN]
    assert capsys.readouterr().out.count("I do not know.") == len(abstained) < 4


def test_extraction_gives_objects_or_nothing() -> None:
    example = load("extraction")
    people = example.main(example.TEXTS)
    assert len(people) == 3
    assert all(person is None or isinstance(person, example.Person) for person in people)
    assert people[1] is None  # there is nobody in this text
    assert people[0] == example.Person(name="Maria", age=31)


def test_the_agents_payment_waits_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("agent_review")
    result = example.main()
    assert example.ACCOUNT == {"balance": 185}  # 15 euros as the person said, not 150
    *_, call, tool, last = result["messages"]
    assert call.tool_calls[0]["args"] == {"to": "Anna", "amount": 15}
    assert tool.text == "15 euros were sent to Anna."
    assert last.text
    out = capsys.readouterr().out
    assert "the agent waits: send_money({'to': 'Anna', 'amount': 150})" in out


def test_a_review_outlives_the_process(tmp_path: Path) -> None:
    question = "Who was the third person to swim across Lake Onega?"
    asked = run("langgraph_review", "ask", "1", question, cwd=tmp_path)
    assert f"waiting: {question}" in asked
    waiting = run("langgraph_review", "waiting", "1", cwd=tmp_path)
    assert waiting in asked
    draft = waiting.splitlines()[-1].strip()
    assert draft
    assert "answer: Nobody has." in run("langgraph_review", "decide", "1", "Nobody has.", cwd=tmp_path)
    assert "does not wait" in run("langgraph_review", "decide", "1", "approve", cwd=tmp_path, code=1)
    run("langgraph_review", "ask", "2", question, cwd=tmp_path)
    assert f"answer: {draft}" in run("langgraph_review", "decide", "2", "approve", cwd=tmp_path)


def test_the_web_service_answers_and_refuses() -> None:
    pytest.importorskip("httpx")
    testclient = pytest.importorskip("fastapi.testclient")
    example = load("fastapi_app")
    with testclient.TestClient(example.create_app()) as client:
        good = client.post("/ask", json={"question": "What is the capital of France?"}).json()
        assert (good["action"], "Paris" in good["answer"]) == ("accept", True)
        question = "Who was the third person to swim across Lake Onega?"
        doubtful = client.post("/ask", json={"question": question, "route": "careful"}).json()
        assert (doubtful["action"], doubtful["answer"]) == ("abstain", "I do not know.")
        assert 0.1 <= doubtful["p_wrong"] <= 1.0
        unknown = client.post("/ask", json={"question": "?", "route": "carefull"})
        assert unknown.status_code == 422
        assert "Did you mean 'careful'?" in unknown.json()["error"]
        assert client.post("/ask", json={"question": ""}).status_code == 422


def test_the_notebook_runs_and_shows_what_it_did() -> None:
    """Its code cells are run in order, as Jupyter would, with a short question budget."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    cells = json.loads((EXAMPLES / "signatures.ipynb").read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    from matplotlib import pyplot

    scope: dict[str, Any] = {}
    for code in codes:
        short = code.replace("MAX_TOKENS = 24", "MAX_TOKENS = 8")
        exec(compile(short, "signatures.ipynb", "exec"), scope)  # noqa: S102 - our own notebook
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    assert len(figures) == 4
    layers = scope["answers"][0][1].maps.shape[-1]
    assert figures[0].axes[0].images[0].get_array().shape == (layers, layers)
    assert [bar.get_width() for bar in figures[2].axes[0].patches] == scope["scores"]
    pyplot.close("all")
    shown = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
