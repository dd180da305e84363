"""``guard policy``: the commands, their exit codes and their JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from guard.cli.policy import app
from guard.errors import InputError, PolicyError
from guard.policy.policy import Budget, Retry, builtin_policies, decide, json_schema, load_policy, parse_policy

REPOSITORY = Path(__file__).parents[2]
BAD = "version: 1\nname: x\nrules:\n  - accept: {below: yes}\n  - abstian\n"


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def printed_json(*arguments: str | Path) -> Any:
    return json.loads(printed(*arguments, "--json"))


def refused(*arguments: str | Path) -> Exception:
    """The error that `guard.cli.main` turns into one message and an exit code."""
    result = run(*arguments)
    assert isinstance(result.exception, InputError), result.output
    return result.exception


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return path


def test_check_of_good_policies() -> None:
    assert printed("check", "strict", builtin_policies()["balanced"]).splitlines() == [
        "strict: no mistakes (strict, 2 rules)",
        f"{builtin_policies()['balanced']}: no mistakes (balanced, 5 rules, routes medical)",
    ]


def test_check_prints_each_problem_on_a_line_and_continues(bad: Path) -> None:
    result = run("check", bad, "nope", "strict")
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"{bad}:4:21: rules[0].accept.below must be a number, got 'yes'",
        f"{bad}:5:5: unknown action 'abstian'. Did you mean 'abstain'?",
        "nope: There is no policy 'nope': no built-in policy and no file has that name. "
        "Known: balanced, certified, ilis, permissive, shadow, strict.",
        "strict: no mistakes (strict, 2 rules)",
    ]


def test_check_as_json(bad: Path) -> None:
    result = run("check", bad, "no/such.yaml", "strict", "--json")
    assert result.exit_code == 2
    wrong, missing, fine = json.loads(result.stdout)
    assert (wrong["file"], wrong["valid"]) == (str(bad), False)
    assert [(problem["line"], problem["column"]) for problem in wrong["problems"]] == [(4, 21), (5, 5)]
    assert wrong["problems"][0]["location"] == "rules[0].accept.below"
    assert "No such file" in missing["problems"][0]["message"]
    assert fine == {
        "file": "strict", "valid": True, "problems": [], "guarantees": [], "notes": [], "name": "strict", "rules": 2,
            "routes": [],
            "needs": {"handlers": [], "fallbacks": [], "agent": [], "scorer": []}, "scorer": None,
    }  # fmt: skip


def test_schema_is_the_schema() -> None:
    assert json.loads(printed("schema")) == printed_json("schema") == json_schema()


def test_explain_shows_the_rule_that_decides() -> None:
    lines = printed("explain", "balanced", "--score", "0.3").splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["likely", ">", "doubtful", "probably", "almost"]
    assert lines[6] == "retry: p_wrong 0.3 is below 0.45."
    assert lines[7] == "Once the budget is exhausted: fallback, by doubtful."


def test_explain_follows_the_route() -> None:
    told = printed_json("explain", "balanced", "--score", "0.3", "--route", "medical")
    assert told["decision"]["action"] == "escalate"
    assert told["decision"]["rule"] == "routes.medical.rules[1] (escalate)"
    assert told["decision"]["settings"]["to"] == ["review", "log"]
    assert [step["decides"] for step in told["steps"]] == [False, True]
    assert (told["policy"], told["route"], told["score"]) == ("balanced", "medical", 0.3)


TOOLS = """\
version: 1
name: bank
rules: [accept: {below: 0.4}, abstain]
tools:
  default: {rules: [accept: {below: 0.3}, escalate: {to: [interrupt]}]}
  send_money: {rules: [accept: {below: 0.02}, escalate: {to: [interrupt, log]}]}
  look_up: {on_error: escalate}
routes:
  careful: {rules: [accept: {below: 0.1}, abstain]}
"""


@pytest.mark.parametrize(
    ("options", "action", "rule", "section"),
    [
        ([], "accept", "rules[0] (accept)", None),
        (["--tool=send_money"], "escalate", "tools.send_money.rules[1] (escalate)", "send_money"),
        (["--tool=other"], "accept", "tools.default.rules[0] (accept)", "default"),
        (["--tool=look_up"], "accept", "rules[0] (accept)", "look_up"),
        (["--tool=look_up", "--route=careful"], "abstain", "routes.careful.rules[1] (abstain)", "look_up"),
        (["--tool=send_money", "--route=careful"], "escalate", "tools.send_money.rules[1] (escalate)", "send_money"),
    ],
)
def test_explain_follows_the_tool(
    tmp_path: Path, options: list[str], action: str, rule: str, section: str | None
) -> None:
    path = tmp_path / "bank.yaml"
    path.write_text(TOOLS)
    told = printed_json("explain", path, "--score=0.2", *options)
    assert (told["decision"]["action"], told["decision"]["rule"], told["tool_section"]) == (action, rule, section)
    assert [step["rule"] for step in told["steps"] if step["decides"]] == [rule]
    tools = [option.partition("=")[2] for option in options if option.startswith("--tool")]
    route = "careful" if "--route=careful" in options else None
    assert decide(load_policy(path), p_wrong=0.2, route=route, tools=tools).rule == rule, "what an agent would do"


def test_explain_says_that_a_tool_has_no_rules_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bank.yaml"
    path.write_text(TOOLS)
    first = printed("explain", path, "--score=0.2", "--tool=send_mony").splitlines()[0]
    assert first == "tools has no 'send_mony', so tools.default is taken. Did you mean 'send_money'?"
    assert "the rules are those of other answers" in printed("explain", "balanced", "--score=0.2", "--tool=x")
    assert "tools has no" not in printed("explain", path, "--score=0.2", "--tool=send_money")


def test_explain_says_that_shadow_changes_nothing() -> None:
    assert "shadow mode" in printed("explain", "shadow", "--score", "0.9")


@pytest.mark.parametrize("score", ["1.5", "-0.1", "nan", "inf"])
def test_explain_refuses_what_is_no_probability(score: str) -> None:
    assert "probability from 0 to 1" in str(refused("explain", "strict", f"--score={score}"))


def test_explain_refuses_unknown_names(bad: Path) -> None:
    assert "Did you mean 'strict'" in str(refused("explain", "strickt", "--score", "0.1"))
    assert "Did you mean 'medical'" in str(refused("explain", "balanced", "--score", "0", "--route", "medica"))
    assert str(refused("explain", bad, "--score", "0.1")).startswith(f"{bad}:4:21: ")
    assert run("explain", "strict", "--score", "high").exit_code == 2
    assert run("explain", "strict").exit_code == 2


def test_init_writes_a_policy_that_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in builtin_policies().items():
        assert printed_json("init", name) == {"policy": name, "path": f"{name}.yaml"}
        assert Path(f"{name}.yaml").read_bytes() == path.read_bytes()
        assert load_policy(f"{name}.yaml").sha256 == load_policy(name).sha256


def test_init_overwrites_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("my work")
    assert "already exists" in str(refused("init", "strict", "--out", path))
    assert path.read_text() == "my work"
    assert "guard policy check" in printed("init", "strict", "--out", path, "--force")
    assert load_policy(path).name == "strict"


def test_init_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    assert "No such file or directory" in str(refused("init", "strict", "--out", tmp_path / "no" / "x.yaml"))
    assert "Is a directory" in str(refused("init", "strict", "--out", tmp_path, "--force"))
    error = refused("init", "strct")
    assert isinstance(error, PolicyError)
    assert "Did you mean 'strict'" in str(error)


def test_list_names_the_builtin_policies() -> None:
    assert [line.split()[0] for line in printed("list").splitlines()] == list(builtin_policies())
    for entry in printed_json("list"):
        assert set(entry) == {"name", "description", "mode", "routes", "sha256", "path"}
        assert entry["description"]
        assert Path(entry["path"]).is_file()


def guard(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = "from guard.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_the_program_ends_with_the_documented_codes(bad: Path) -> None:
    assert guard("policy", "check", "strict").returncode == 0
    assert guard("policy", "check", str(bad)).returncode == 2
    failed = guard("policy", "explain", str(bad), "--score", "0.1")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith(f"error: {bad}:4:21: ")
    assert "Traceback" not in failed.stderr
    as_json = guard("policy", "explain", "nope", "--score", "0.1", "--json")
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout)["error"]["type"] == "PolicyError"


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, guard.cli.policy; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"pydantic", "yaml", "numpy", "torch"} & set(loaded.split())


# -- what the documentation shows --------------------------------------------------------------

BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```", (REPOSITORY / "docs" / "reference" / "policies.md").read_text(), re.DOTALL | re.MULTILINE
)
YAML_BLOCKS = [block for kind, block in BLOCKS if kind == "yaml" and "mistakes.yaml" not in block]


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_each_documented_policy_is_right(block: str) -> None:
    """Examples that show a part only are completed by what is required."""
    required = {"version": "1", "name": "x", "rules": "[abstain]"}
    rest = [f"{key}: {value}\n" for key, value in required.items() if not re.search(f"^{key}:", block, re.MULTILINE)]
    assert parse_policy(block + "".join(rest)).plan().rules


def test_the_documented_output_is_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (mistakes,) = (block for _, block in BLOCKS if block.startswith("# mistakes.yaml"))
    Path("mistakes.yaml").write_text(mistakes)
    shown = [block for kind, block in BLOCKS if kind == "console"]
    assert len(shown) == 4
    for block in shown:
        commands = re.findall(r"^\$ guard policy (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
        assert commands
        for command, expected in commands:
            result = run(*command.split())
            assert result.exit_code in (0, 2)
            assert result.exception is None or isinstance(result.exception, SystemExit)
            if expected:
                assert [line.rstrip() for line in result.stdout.splitlines()] == expected.splitlines()


def test_the_documented_defaults_are_the_defaults() -> None:
    text = (REPOSITORY / "docs" / "reference" / "policies.md").read_text()
    for model in (Retry, Budget):
        for name, field in model.model_fields.items():
            default = field.get_default()
            if default is not None:
                assert re.search(rf"^\| `{name}` \| {default:g} \|", text, re.MULTILINE), name


def test_check_notes_a_retry_that_can_only_give_the_same_answer_again(tmp_path: Path) -> None:
    """It is allowed: the budget may be what it is for. With an instruction the prompt is another one."""
    rules = "  - accept: {below: 0.2}\n  - retry: {below: 0.6%s}\n  - abstain\n"
    text = f"version: 1\nname: x\nrules:\n{rules}on_error:\n  abstain\n"
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(text % ", temperature: 0")
    other.write_text(text % ", temperature: 0, instruction: Think again.")
    _, note = printed("check", same).splitlines()
    assert note.startswith(f"{same}: note: rules[1] (retry) asks the same again at temperature 0")
    assert printed_json("check", other)[0]["notes"] == []
