"""A gate on skipped tests: with ``--strict-skips`` a run fails where a test is skipped for a reason not listed here.

Without it a missing wheel turns hundreds of tests into skips, and the run is green. ``make test`` installs everything
and demands the gate; a run in a smaller environment leaves it out. Where PostgreSQL is required (see
`postgresql_server`) or a browser (see `browser`) and cannot be started, the run ends before its first test.
"""

from __future__ import annotations

import re

import browser
import postgresql_server
import pytest

#: Reasons that a complete environment may still have.
ALLOWED = (
    r"root may (write anywhere|read everything)",
    r"GUARD_TEST_TOOL_MODEL names no model",
    r"no llama-server: LLAMA_SERVER names no binary",
    r"vLLM is not installed",
    r"ray is not installed",
    r"pictures of the documents are made on demand",
    r"no Prometheus: it is not installed",
    r"no (npm packages|LiteLLM|(source of )?Open WebUI): GUARD_TEST_\w+ names none",
    r"(the shared question sets|the copies of real sets) are not here",
    # langchain-tests skips what a model says that it cannot do; the counts are in docs/how-to/langchain.md.
    r"[Mm]odel .*(does not|doesn't) support",
    r"does not (explicitly )?support",
    r"not supported",
    r"Test requires .*",
    r"init_from_env_params not specified|Model is not serializable|VCR not set up",
    r"`?\w+`? (is|are) not (supported|set)",
)
#: Allowed where nobody requires the server.
NO_POSTGRESQL = r"no PostgreSQL server: .*"
#: The same of the browser.
NO_BROWSER = r"no browser: .*"

_unexpected: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="fail where a test is skipped for an unlisted reason")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--strict-skips"):
        return
    try:
        postgresql_server.is_available()
        browser.missing()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(re.search(allowed, reason) for allowed in _allowed()):
        _unexpected.append(f"{report.nodeid}: {reason}")


def _allowed() -> tuple[str, ...]:
    servers = {NO_POSTGRESQL: postgresql_server.SETTING, NO_BROWSER: browser.SETTING}
    return (*ALLOWED, *(reason for reason, setting in servers.items() if setting != "required"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexpected and session.config.getoption("--strict-skips"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _unexpected and config.getoption("--strict-skips"):
        terminalreporter.section("skipped for a reason that --strict-skips does not allow", red=True)
        for line in _unexpected:
            terminalreporter.line(line)
