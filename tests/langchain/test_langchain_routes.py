"""A route or a policy that a call names holds in every interface, or is an error; it is never ignored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_agents import agent, last
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langchain_fixtures import policy
from pydantic import BaseModel
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.errors import InputError, PolicyError
from guard.langchain import ChatGuard, GuardMiddleware, guarded
from guard.policy.policy import Policy

ROUTES = "routes: {medication: {rules: [{accept: {below: 0.01}}, {abstain: {text: Ask a doctor.}}]}}"
ROUTED = policy("[{accept: {below: 0.5}}, {abstain: {text: No.}}]", ROUTES)
STRICT = policy("[{abstain: {text: Never.}}]", name="strictest")
PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])

#: A call with this input, config and these keyword arguments, and what it gives as one text.
CallWith = Callable[[Any, Any, Any, dict[str, Any]], str]


def _text(parts: list[Any]) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in parts).strip()


async def _streamed(safe: Any, asked: Any, config: Any, options: dict[str, Any]) -> str:
    return _text([chunk async for chunk in safe.astream(asked, config, **options)])


async def _events(safe: Any, asked: Any, config: Any, options: dict[str, Any]) -> str:
    events = [event async for event in safe.astream_events(asked, config, **options)]
    root = [event for event in events if not event["parent_ids"] and event["event"].endswith("_end")]
    return _text([root[-1]["data"]["output"]])


INTERFACES: dict[str, CallWith] = {
    "invoke": lambda safe, asked, config, options: _text([safe.invoke(asked, config, **options)]),
    "ainvoke": lambda safe, asked, config, options: _text([asyncio.run(safe.ainvoke(asked, config, **options))]),
    "batch": lambda safe, asked, config, options: _text(safe.batch([asked], [config or {}], **options)),
    "abatch": lambda safe, asked, config, options: _text(asyncio.run(safe.abatch([asked], [config or {}], **options))),
    "stream": lambda safe, asked, config, options: _text([*safe.stream(asked, config, **options)]),
    "astream": lambda *call: asyncio.run(_streamed(*call)),
    "astream_events": lambda *call: asyncio.run(_events(*call)),
}

#: How a call or a runnable names something: the runnable, the config and the keyword arguments to call with.
Way = Callable[[Any, dict[str, Any]], tuple[Any, Any, dict[str, Any]]]
WAYS: dict[str, Way] = {
    "keyword": lambda safe, named: (safe, None, named),
    "configurable": lambda safe, named: (safe, {"configurable": named}, {}),
    "top of the config": lambda safe, named: (safe, named, {}),
    "with_config": lambda safe, named: (safe.with_config(configurable=named), None, {}),
    "with_config of a config": lambda safe, named: (safe.with_config({"configurable": named}), None, {}),
    "bind": lambda safe, named: (safe.bind(**named), None, {}),
}

matrix = [pytest.mark.parametrize("interface", INTERFACES), pytest.mark.parametrize("way", WAYS)]


def _every_way(test: Any) -> Any:
    for mark in matrix:
        test = mark(test)
    return test


def chain() -> Runnable[Any, Any]:
    return PROMPT | ScriptedChat(script=lambda messages: said("Two pills", 0.2)) | StrOutputParser()


def chat_guard(**settings: Any) -> ChatGuard:
    engine = AnsweringEngine(lambda prompt, number: ("Two pills", 0.2))
    return ChatGuard(engine=engine, scorer=confidence_scorer(engine.model), system="", max_tokens=32, **settings)


def call(safe: Any, asked: Any, named: dict[str, Any], *, way: str, interface: str) -> str:
    runnable, config, options = WAYS[way](safe, named)
    return INTERFACES[interface](runnable, asked, config, options)


# -- a guarded chain -----------------------------------------------------------------------------


@_every_way
def test_a_guarded_chain_takes_the_route_that_a_call_names(way: str, interface: str) -> None:
    safe = guarded(chain(), policy=ROUTED)
    how = {"way": way, "interface": interface}
    assert call(safe, {"q": "?"}, {}, **how) == "Two pills"
    assert call(safe, {"q": "?"}, {"route": "medication"}, **how) == "Ask a doctor."


@_every_way
def test_a_guarded_chain_takes_the_policy_that_a_call_names(way: str, interface: str) -> None:
    safe = guarded(chain(), policy=ROUTED)
    assert call(safe, {"q": "?"}, {"policy": STRICT}, way=way, interface=interface) == "Never."


@_every_way
@pytest.mark.parametrize(
    "named",
    [
        {"route": "nonsense"},
        {"rout": "medication"},
        {"Route": "medication"},
        {"guard_route": "medication"},
        {"polcy": "strict"},
        {"policies": "strict"},
        {"policy": "no such policy"},
        {"route": 7},
    ],
    ids=str,
)
def test_what_is_misspelt_is_refused_by_a_guarded_chain_and_by_a_chat_guard(
    way: str, interface: str, named: dict[str, Any]
) -> None:
    for safe, asked in ((guarded(chain(), policy=ROUTED), {"q": "?"}), (chat_guard(policy=ROUTED), "?")):
        with pytest.raises(InputError):
            call(safe, asked, named, way=way, interface=interface)


@pytest.mark.parametrize(
    "named",
    [
        *({name: "medication"} for name in ("route_name", "routeName", "policy_route", "guard.route", "guard:route")),
        *({name: "strict"} for name in ("policy_name", "policy_file", "policyPath", "guard-policy")),
        {"guard": {"route": "medication"}},
    ],
    ids=str,
)
def test_names_that_people_expect_instead_are_refused_too(named: dict[str, Any]) -> None:
    for safe, asked in ((guarded(chain(), policy=ROUTED), {"q": "?"}), (chat_guard(policy=ROUTED), "?")):
        with pytest.raises(InputError, match=r"Did you mean '(route|policy)'"):
            safe.invoke(asked, {"configurable": named})


@pytest.mark.parametrize("key", ["session_id", "thread_id", "user_id", "tenant", "guardian", "garden", "model"])
def test_keys_that_mean_something_else_pass(key: str) -> None:
    assert guarded(chain(), policy=ROUTED).invoke({"q": "?"}, {"configurable": {key: "x"}}) == "Two pills"


def test_the_error_of_a_misspelling_says_what_was_meant() -> None:
    safe = guarded(chain(), policy=ROUTED)
    with pytest.raises(InputError, match=r"keyword argument 'rout'.*Did you mean 'route'"):
        safe.invoke({"q": "?"}, rout="medication")
    with pytest.raises(InputError, match=r"configurable key 'Polcy'.*Did you mean 'policy'"):
        safe.invoke({"q": "?"}, {"configurable": {"Polcy": "strict"}})
    with pytest.raises(PolicyError, match="Did you mean 'medication'"):
        safe.invoke({"q": "?"}, route="medicaton")


@pytest.mark.parametrize("name", ["scores", "fallbacks", "handlers", "return_outcome", "store"])
def test_a_setting_of_the_guarded_chain_is_no_keyword_of_a_call(name: str) -> None:
    with pytest.raises(InputError, match=f"cannot set '{name}'"):
        guarded(chain(), policy=ROUTED).invoke({"q": "?"}, **{name: "last"})


def test_a_route_that_is_named_twice_differently_is_refused() -> None:
    with pytest.raises(InputError, match="two different values of 'route'"):
        guarded(chain(), policy=ROUTED).invoke({"q": "?"}, {"configurable": {"route": "medication"}}, route="medicine")


def test_a_call_names_a_route_in_place_of_the_chains_own() -> None:
    safe = guarded(
        chain(), policy=policy("[{abstain: {text: No.}}]", ROUTES + "\nextends: strict" * 0), route="medication"
    )
    assert safe.invoke({"q": "?"}) == "Ask a doctor."
    with pytest.raises(PolicyError):
        guarded(chain(), policy=ROUTED, route="medicine")


@pytest.mark.parametrize("interface", INTERFACES)
def test_keys_of_others_pass_through_to_the_chain(interface: str) -> None:
    seen: list[Any] = []

    def note(asked: Any, config: Any) -> Any:
        seen.append(config["configurable"])
        return asked

    prompt = PROMPT.configurable_fields(input_types=ConfigurableField(id="router"))
    safe = guarded(RunnableLambda(note) | prompt | ScriptedChat(script=lambda _: said("Yes", 0.1)), policy=ROUTED)
    config = {"configurable": {"session_id": "s", "thread_id": "t", "my_route": 1, "router": {}}}
    assert INTERFACES[interface](safe, {"q": "?"}, config, {}) == "Yes"
    assert seen[0] | config["configurable"] == seen[0]


def test_each_call_of_a_batch_has_its_own_route() -> None:
    safe, configs = guarded(chain(), policy=ROUTED), [{}, {"configurable": {"route": "medication"}}, {}]
    expected = ["Two pills", "Ask a doctor.", "Two pills"]
    assert [text.strip() for text in safe.batch([{"q": "?"}] * 3, configs)] == expected
    assert [text.strip() for text in asyncio.run(safe.abatch([{"q": "?"}] * 3, configs))] == expected


def test_a_guarded_chain_inside_another_runnable_takes_the_route_of_the_config() -> None:
    safe = guarded(chain(), policy=ROUTED)
    inside = RunnableLambda(lambda asked: safe.invoke(asked))
    config = {"configurable": {"route": "medication"}}
    assert inside.invoke({"q": "?"}, config) == "Ask a doctor."
    assert (RunnableLambda(lambda asked: asked) | safe).invoke({"q": "?"}, config) == "Ask a doctor."


def test_the_schema_of_the_config_shows_route_and_policy() -> None:
    for safe in (guarded(chain(), policy=ROUTED), chat_guard(policy=ROUTED)):
        properties = str(safe.config_schema().model_json_schema())
        assert "route" in properties
        assert "policy" in properties


@pytest.mark.parametrize("key", ["route", "guard_route", "Route"])
def test_configurable_fields_may_give_the_route_any_key(key: str) -> None:
    field = ConfigurableField(id=key)
    for safe, asked in ((guarded(chain(), policy=ROUTED), {"q": "?"}), (chat_guard(policy=ROUTED), "?")):
        configured = safe.configurable_fields(route=field)
        assert key in str(configured.config_schema().model_json_schema())
        for interface in INTERFACES.values():
            assert interface(configured, asked, {"configurable": {key: "medication"}}, {}) == "Ask a doctor."


# -- a model that decides by itself ----------------------------------------------------------------


@_every_way
def test_a_chat_guard_takes_the_route_and_the_policy_that_a_call_names(way: str, interface: str) -> None:
    model, how = chat_guard(policy=ROUTED), {"way": way, "interface": interface}
    assert call(model, "?", {}, **how) == "Two pills"
    assert call(model, "?", {"route": "medication"}, **how) == "Ask a doctor."
    assert call(model, "?", {"policy": STRICT}, **how) == "Never."


@_every_way
def test_a_route_without_a_policy_is_refused_by_a_chat_guard(way: str, interface: str) -> None:
    with pytest.raises(InputError, match="no policy for the route 'medication'"):
        call(chat_guard(), "?", {"route": "medication"}, way=way, interface=interface)


def test_a_chat_guard_is_not_built_with_a_route_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no policy for the route"):
        chat_guard(route="medication")
    with pytest.raises(PolicyError, match="medicine"):
        chat_guard(policy=ROUTED, route="medicine")
    assert chat_guard(policy=ROUTED, route="medication").invoke("?").text == "Ask a doctor."


def test_a_model_that_only_scores_leaves_the_route_to_the_chain_around_it() -> None:
    safe = guarded(PROMPT | chat_guard(), policy=ROUTED)
    assert safe.invoke({"q": "?"}, {"configurable": {"route": "medication"}}).text == "Ask a doctor."
    assert safe.invoke({"q": "?"}, route="medication").text == "Ask a doctor."


# -- agents ----------------------------------------------------------------------------------------


@dataclass
class Context:
    route: str | None = None
    policy: Policy | None = None


def agent_says(graph: Any, interface: str, **how: Any) -> str:
    given = {"messages": [("user", "?")]}
    match interface:
        case "invoke":
            return last(graph.invoke(given, **how)).text
        case "ainvoke":
            return last(asyncio.run(graph.ainvoke(given, **how))).text
        case "stream":
            return last([*graph.stream(given, stream_mode="values", **how)][-1]).text
    config = how.pop("config", None)
    return last(graph.batch([given], [config or {}], **how)[0]).text


AGENTS = pytest.mark.parametrize("interface", ["invoke", "ainvoke", "stream", "batch"])


def guarded_agent(**options: Any) -> Any:
    model = ScriptedChat(script=lambda _: said("Two pills", 0.2))
    return agent(model, GuardMiddleware(ROUTED), checkpointer=None, **options)


@AGENTS
def test_an_agent_takes_route_and_policy_from_the_config(interface: str) -> None:
    graph = guarded_agent()
    for named, text in (
        ({}, "Two pills"),
        ({"route": "medication"}, "Ask a doctor."),
        ({"policy": STRICT}, "Never."),
    ):
        assert agent_says(graph, interface, config={"configurable": named}) == text
        assert agent_says(graph.with_config(configurable=named), interface) == text


@AGENTS
def test_an_agent_takes_route_and_policy_from_the_context_of_the_run(interface: str) -> None:
    for graph, kind in ((guarded_agent(context_schema=Context), Context), (guarded_agent(), dict)):
        assert agent_says(graph, interface, context=kind()) == "Two pills"
        assert agent_says(graph, interface, context=kind(route="medication")) == "Ask a doctor."
        assert agent_says(graph, interface, context=kind(policy=STRICT)) == "Never."


@AGENTS
@pytest.mark.parametrize("named", [{"route": "nonsense"}, {"rout": "medication"}, {"Policy": "strict"}], ids=str)
def test_what_is_misspelt_is_refused_by_an_agent(interface: str, named: dict[str, Any]) -> None:
    for how in ({"config": {"configurable": named}}, {"context": named}):
        with pytest.raises(InputError):
            agent_says(guarded_agent(), interface, **how)


@dataclass(slots=True)
class MisspeltContext:
    rout: str = "medication"


class MisspeltModel(BaseModel):
    polcy: str = "strict"


@AGENTS
@pytest.mark.parametrize("context", [MisspeltContext(), MisspeltModel()], ids=lambda context: type(context).__name__)
def test_what_is_misspelt_in_the_object_of_a_context_is_refused_too(interface: str, context: Any) -> None:
    with pytest.raises(InputError, match=r"There is no key of the context '(rout|polcy)'"):
        agent_says(guarded_agent(context_schema=type(context)), interface, context=context)


@AGENTS
@pytest.mark.parametrize("named", [{"route": ""}, {"policy": ""}], ids=str)
def test_an_empty_name_is_none_and_an_error(interface: str, named: dict[str, Any]) -> None:
    for how in ({"config": {"configurable": named}}, {"context": named}):
        with pytest.raises(PolicyError, match=r"no (route|policy) ''"):
            agent_says(guarded_agent(), interface, **how)
