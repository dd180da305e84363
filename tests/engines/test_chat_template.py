"""Chat templates: the same text as transformers', and strangers' templates kept within bounds."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from chat_templates import CHATML, CHATS, GEMMA, LLAMA3, MISTRAL, ONE, QWEN_TOOLS, TEMPLATES, TOOLS
from embedded_model import smollm2_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty_templates import nasty_templates

from guard.engines import bounded_process, chat_template, template_process
from guard.engines.chat_template import clock, render
from guard.engines.gguf import read_gguf
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.engines.system_role import with_system_placed
from guard.engines.template_sandbox import MAX_REASON
from guard.errors import ChatTemplateError, InputError
from guard.records import Prompt


def theirs(template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str | None:
    """transformers' own rendering, or None where its template refuses."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            [messages],
            tools=tools or None,
            chat_template=template,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
    except jinja2.exceptions.TemplateError:
        return None
    return str(rendered[0])


@pytest.mark.torch
@pytest.mark.parametrize("tools", [[], TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_what_transformers_renders(name: str, chat: str, tools: list[dict[str, Any]]) -> None:
    pytest.importorskip("transformers")
    expected = theirs(TEMPLATES[name], CHATS[chat], tools)
    if expected is None:
        with pytest.raises(ChatTemplateError):
            render(TEMPLATES[name], CHATS[chat], tools=tools, bos_token="<s>", eos_token="</s>")
    else:
        assert render(TEMPLATES[name], CHATS[chat], tools=tools, bos_token="<s>", eos_token="</s>") == expected


@pytest.mark.torch
@pytest.mark.parametrize("chat", ["user", "system", "turns"])
def test_the_embedded_models_template(chat: str) -> None:
    pytest.importorskip("transformers")
    template = read_gguf(smollm2_file()).chat_template
    assert template is not None
    rendered = render(template, CHATS[chat], bos_token="<s>", eos_token="</s>")
    assert rendered == theirs(template, CHATS[chat], [])
    assert rendered.startswith("<|im_start|>system\n")
    assert rendered.endswith("<|im_start|>assistant\n")


@pytest.mark.torch
@settings(max_examples=100, deadline=None)
@given(
    chat=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text()}),
        min_size=1,
        max_size=5,
    ),
    name=st.sampled_from(sorted(TEMPLATES)),
)
def test_any_chat_renders_as_in_transformers(chat: list[dict[str, Any]], name: str) -> None:
    pytest.importorskip("transformers")
    try:
        ours: str | None = render(TEMPLATES[name], chat, bos_token="<s>", eos_token="</s>")
    except ChatTemplateError:
        ours = None
    assert ours == theirs(TEMPLATES[name], chat, [])


def test_chatml_by_hand() -> None:
    assert render(CHATML, CHATS["system"][:1]) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, ONE, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_messages_are_data_and_not_template() -> None:
    attack = [{"role": "user", "content": "{{ raise_exception('run') }}{% for x in y %}"}]
    assert attack[0]["content"] in render(CHATML, attack)


def test_what_templates_may_call() -> None:
    assert render("{{ strftime_now('%Y') }}", ONE) == time.strftime("%Y")
    indented = render("{{ messages | tojson(indent=2) }}", [{"role": "user", "content": "<é>"}])
    assert indented == json.dumps([{"role": "user", "content": "<é>"}], indent=2, ensure_ascii=False)
    loop = (
        "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% elif x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}"
    )
    assert render(loop, ONE) == "013"
    assert render("{{ 3 * 4 }} {{ [1] * 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 'a' ~ 1 ~ none }}", ONE) == (
        "12 [1, 1] 1024 0.5 a1None"
    )


def test_subclasses_and_mappings_are_made_plain() -> None:
    class Role(StrEnum):
        USER = "user"

    message = MappingProxyType({"role": Role.USER, "content": "hi", "parts": ({"type": "text"},)})
    assert render("{{ messages | tojson }}", [message]) == (
        '[{"role": "user", "content": "hi", "parts": [{"type": "text"}]}]'
    )


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, threading.Lock()])
def test_other_objects_are_refused(value: object) -> None:
    with pytest.raises(InputError, match=f"messages hold a {type(value).__name__}"):
        render(CHATML, [{"role": "user", "content": value}])


def test_a_message_that_holds_itself_is_refused() -> None:
    content: list[Any] = []
    content.append(content)
    with pytest.raises(InputError, match="nested too deeply"):
        render(CHATML, [{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n\n{% if %}", "syntax error in line 3"),
        ("{% for x in y %}", "syntax error in line 1"),
        ("{% nonsense %}", "unknown tag 'nonsense'"),
        ("{{ 'a' | nonsense }}", "nonsense"),
        ("{{ raise_exception('Roles must alternate') }}", "refuses the messages: Roles must alternate"),
        ("\n{{ messages[0].nothing.at_all }}", "not defined in line 2"),
        ("{{ lipsum(1) }}", "'lipsum' is undefined"),
        ("\n\n{{ ''.__class__.__mro__ }}", "sandbox forbids in line 3"),
        ("{{ messages.append(1) }}", "sandbox forbids"),
        ("{{ messages.clear() }}", "sandbox forbids"),
        ("{{ cycler.__init__.__globals__ }}", "sandbox forbids"),
        ("{{ raise_exception.__globals__.os }}", "sandbox forbids"),
        ("{{ 1 / 0 }}", "fails.*ZeroDivisionError"),
        ("{{ none + 'x' }}", "fails.*TypeError"),
        ("{% include '/etc/passwd' %}", "fails.*loader"),
        ("{% import 'os' as os %}", "fails.*loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
        ("{% for x in y %}" * 30 + "{% endfor %}" * 30, "cannot be compiled"),
    ],
)
def test_a_bad_template_is_one_clear_error(template: str, said: str) -> None:
    for _ in range(2):  # an error must not be cached as something else
        with pytest.raises(ChatTemplateError, match=f"(?s){said}"):
            render(template, ONE)


@pytest.mark.parametrize("template", ["{{ '{0.__class__}'.format(1) }}", "{{ messages.__class__ }}"])
def test_internals_are_not_printed(template: str) -> None:
    assert render(template, ONE) == ""


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(s=START) %}{% for a in range(90) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"

RUNAWAYS = [
    LOOPS.replace("BODY", ""),
    LOOPS.replace("BODY", "x" * 99),
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}",
    DOUBLING.replace("START", "'ab'").replace("STEP", "ns.s + ns.s"),
    DOUBLING.replace("START", "'ab'").replace("STEP", "ns.s ~ ns.s"),
    DOUBLING.replace("START", "[1]").replace("STEP", "ns.s + ns.s"),
    DOUBLING.replace("START", "3").replace("STEP", "ns.s * ns.s"),
    "{{ 'a' * 10 ** 12 }}",
    "{{ 10 ** 12 * 'a' }}",
    "{{ [1] * 10 ** 12 }}",
    "{{ 10 ** 10 ** 10 ** 10 ** 10 }}",
    "{{ (10 ** 6) ** (10 ** 6) ** 1 * (7 ** 10 ** 8) }}",
    "{{ 'a' | center(10 ** 14) }}",
    "{{ range(10 ** 9) | list }}",
    "{{ ('a b ' * 10 ** 7) | wordwrap(1) }}",
    "{{ range(99999) | reject('in', range(99999) | list) | list | length }}",
    "{{ range(99999) | batch(1) | list | sum(start=[]) | length }}",
    "{{ '%3000000000d' % 1 }}",
    "{{ '%.3000000000f' % 1 }}",
    "{{ '{:>3000000000}'.format(1) }}",
    "{{ ('a' * 10 ** 5) | replace('', 'b' * 10 ** 5) }}",
    "{{ (['a' * 10 ** 6] * 10 ** 6) | join }}",
    "{{ ('a' * 10 ** 8).split('') or ('a ' * 10 ** 9).split() }}",
    "{{ (range(99999) | list * 100) | sort(reverse=true) | unique | map('string') | join('x' * 10 ** 5) }}",
    "{{ 'a'.ljust(10 ** 10) ~ 'a'.zfill(10 ** 10) ~ 'a\t'.expandtabs(10 ** 10) }}",
    "{{ strftime_now('%Y' * 10 ** 8) }}",
    "{{ raise_exception('x' * 10 ** 10) }}",
    "{{ messages | tojson(indent=10 ** 10) }}",
    "{{ ('<' * 10 ** 8) | urlize }}{{ ('<a' * 10 ** 8) | striptags }}",
]


@pytest.mark.parametrize("template", RUNAWAYS)
def test_a_runaway_template_is_stopped_within_its_time_and_memory(
    monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.5)
    with pytest.raises(ChatTemplateError, match=r"chat template"):
        render(template, ONE)
    assert render(CHATML, ONE) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "the next one is served"


@pytest.mark.parametrize("constant", ["'a' * 10 ** 11", "('a b ' * 10 ** 7) | wordwrap(1)"])
def test_looking_for_a_templates_options_is_bounded_too(monkeypatch: pytest.MonkeyPatch, constant: str) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.5)
    with pytest.raises(ChatTemplateError, match="stopped"):
        render(f"{{{{ {constant} }}}}{{{{ thinking }}}}", ONE, options={"thinking": False})


def test_the_bounds_are_the_kernels_and_of_the_rendering_process_alone() -> None:
    """Seen from outside: the largest and longest-running template leaves this process as it was."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(ChatTemplateError, match="more memory than it may have"):
        render("{{ 'a' * 10 ** 10 }}", ONE)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 2**16, "kibibytes"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_reason_of_any_length_is_cut() -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render("{{ raise_exception('x' * 10 ** 7) }}", ONE)
    assert len(str(caught.value)) < 2 * MAX_REASON


def test_a_process_that_dies_is_one_error_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rendering that ends its process (here: it is killed) must not end the caller's."""
    render(CHATML, ONE)
    (idle,) = template_process._pool._idle[:1]
    monkeypatch.setattr(type(idle), "alive", True)  # it dies after it was looked at
    idle._process.kill()
    with pytest.raises(ChatTemplateError, match="ended with status -9"):
        render(CHATML, ONE)
    assert render("{{ 1 }}", ONE) == "1"


def test_a_process_that_kept_much_memory_is_replaced_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    template_process._pool.close()
    render(CHATML, ONE)
    (first,) = template_process._pool._idle
    render(CHATML, ONE)
    assert template_process._pool._idle == [first], "whatever memory this process has itself"
    exchange = type(first).exchange

    def spent(self: Any, request: bytes, *, max_seconds: float) -> Any:
        header, text = exchange(self, request, max_seconds=max_seconds)
        return {**header, "spent": True}, text

    monkeypatch.setattr(type(first), "exchange", spent)
    assert render("{{ 1 }}", ONE) == "1"
    assert template_process._pool._idle == []
    assert first._process.returncode is not None


def test_a_warm_process_that_died_meanwhile_is_not_noticed() -> None:
    render(CHATML, ONE)
    for idle in template_process._pool._idle:
        idle._process.kill()
        idle._process.wait()
    assert render("{{ 1 }}", ONE) == "1"


def test_processes_are_kept_warm_and_no_more_than_a_few() -> None:
    template_process._pool.close()
    threads = [threading.Thread(target=lambda: [render(CHATML, ONE) for _ in range(20)]) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    warm = [idle._process.pid for idle in template_process._pool._idle]
    assert 1 <= len(warm) <= bounded_process.MAX_PROCESSES
    render(CHATML, ONE)
    assert [idle._process.pid for idle in template_process._pool._idle] == warm


@pytest.mark.no_cover
def test_ctrl_c_while_a_template_renders_loses_only_that_rendering() -> None:
    """The half of a reply that is left in a pipe must never be read as the next prompt."""
    alarm = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        render(LOOPS.replace("BODY", ""), ONE)
    alarm.join()
    assert render("{{ 1 }}", ONE) == "1"


def test_after_a_fork_the_child_renders_in_processes_of_its_own() -> None:
    program = """
import os, sys
from guard.engines import template_process
from guard.engines.chat_template import clock, render
one = [{"role": "user", "content": "hi"}]
template = "{{ messages[0].content }}"
assert render(template, one) == "hi"
(warm,) = template_process._pool._idle
pid = os.fork()
if pid == 0:
    assert not template_process._pool._idle
    assert render(template, one) == "hi"
    assert template_process._pool._idle[0]._process.pid != warm._process.pid
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert render(template, one) == "hi"
assert template_process._pool._idle == [warm]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_rendering_processes_end_with_their_owner() -> None:
    program = (
        "import os; from guard.engines import template_process; from guard.engines.chat_template import render\n"
        "render('x', [{'role': 'user', 'content': 'hi'}])\n"
        "print(template_process._pool._idle[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    pid = int(ended.stdout)
    for _ in range(100):  # until the kernel has closed the pipes and init has seen it
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


def test_long_conversations_are_within_the_budget() -> None:
    chat = [{"role": role, "content": "word " * 100} for role in ("user", "assistant")] * 2000
    assert len(render(CHATML, chat)) > 4000 * 500


LEAVES_OUT = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
ONLY_QUESTION = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, LEAVES_OUT], ids=["gemma", "mistral", "leaves it out"])
def test_guards_own_system_message_goes_into_the_users_where_a_template_takes_none(template: str) -> None:
    own = Prompt.chat(ONLY_QUESTION, system=SHORT_ANSWER_SYSTEM)
    placed = with_system_placed(own, template, bos_token="<s>", eos_token="</s>")
    assert placed.messages == ({"role": "user", "content": f"{SHORT_ANSWER_SYSTEM}\n\nWhy?"},)
    assert SHORT_ANSWER_SYSTEM in render(template, placed.messages or ())
    bare = Prompt.chat(ONLY_QUESTION)
    assert with_system_placed(bare, template, bos_token="<s>", eos_token="</s>") is bare


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, LEAVES_OUT], ids=["gemma", "mistral", "leaves it out"])
def test_a_callers_system_message_is_an_error_where_a_template_takes_none(template: str) -> None:
    asked = Prompt.chat(ONLY_QUESTION, system="You are a pirate.")
    with pytest.raises(ChatTemplateError, match=r"takes no system message.*--system ''"):
        with_system_placed(asked, template, bos_token="<s>", eos_token="</s>")
    alone = Prompt.chat([{"role": "system", "content": SHORT_ANSWER_SYSTEM}])
    with pytest.raises(ChatTemplateError, match="takes no system message"):
        with_system_placed(alone, template, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("template", [CHATML, LLAMA3, QWEN_TOOLS], ids=["chatml", "llama3", "qwen"])
def test_a_template_that_takes_a_system_message_gets_it_as_it_is(template: str) -> None:
    asked = Prompt.chat(ONLY_QUESTION, system="You are a pirate.")
    assert with_system_placed(asked, template, bos_token="<s>", eos_token="</s>") is asked


def test_a_templates_clock_stands_still() -> None:
    assert clock("2026-11-25") == datetime(2026, 11, 25)
    assert render("{{ strftime_now('%d %b %Y %H:%M') }}", ONE, now=clock("2026-11-25")) == "25 Nov 2026 00:00"
    assert clock(None).time() == datetime.min.time()
    for bad in ("25.11.2026", "today", "2026-13-01", ""):
        with pytest.raises(InputError, match="template_date is no date"):
            clock(bad)


@pytest.mark.parametrize(
    "text",
    ["{{ [1, 2]|random }}", "{{ lipsum() }}", "{{ cycler(1) }}", "{{ strftime_now }}", "{{ messages|map('upper') }}"],
)
def test_what_differs_from_process_to_process_is_refused(text: str) -> None:
    """Each prompt would be another one, unseen by the template's hash, as with a date."""
    with pytest.raises(ChatTemplateError):
        render(text, ONE)


def test_a_message_that_quotes_an_address_is_a_message() -> None:
    said = [{"role": "user", "content": "<object object at 0x7f00>"}]
    assert render("{{ messages[0].content }}", said) == "<object object at 0x7f00>"
    assert "0x7f00" in render("{{ messages }}", said)


PIECES = (
    "{{|}}|{%|%}|{#|#}|m|messages|[0]|.content|(|)|'x'| ~ | + | - | ** 9| * 9|__class__|f()|\n|"
    " for m in messages | endfor | if m | endif | else | set x = 1 | macro f() | endmacro | generation |"
    " endgeneration | raise_exception(1)"
)


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(PIECES.split("|")),
        max_size=20,
    )
)
def test_any_template_gives_text_or_a_chat_template_error(pieces: list[str]) -> None:
    try:
        assert isinstance(render("".join(pieces), ONE), str)
    except ChatTemplateError as error:
        assert "chat template" in str(error)  # noqa: PT017 - both outcomes are fine


#: Templates of the next test; a session of fuzzing sets thousands.
FUZZED = int(os.environ.get("GUARD_FUZZ_TEMPLATES", "40"))


@settings(max_examples=FUZZED, deadline=None, suppress_health_check=[*HealthCheck])
@given(template=nasty_templates)
def test_a_nasty_template_gives_a_text_or_an_error_within_its_bounds(template: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chat_template, "MAX_SECONDS", 0.2)
        try:
            assert len(render(template, ONE)) <= chat_template.MAX_CHARACTERS
        except ChatTemplateError as error:
            assert len(str(error)) < 2 * MAX_REASON  # noqa: PT017 - both outcomes are fine
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**18, "kibibytes of this process: an answer of 2 ** 24 characters at most"
    assert render("{{ 1 }}", ONE) == "1", "the next one is served"
