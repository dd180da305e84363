"""A server's file is checked like a policy: lines, hints, and no listening beyond loopback without keys."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from served import running
from typer.testing import CliRunner

from guard.access import Access, Grant, Role
from guard.cli import app
from guard.errors import InputError, PolicyError, ScorerError
from guard.review.store import Store
from guard.serve import ServedModels, Server, ServeSettings, create_application
from guard.serve.config import InvalidConfigError, ServeConfig, load_config, parse_config
from guard.serve.loading import check_listening, console_app, loaded_server

GOOD = "version: 1\nmodels:\n  smollm2:\n    policy: strict\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {smollm2: {}}", "<server>:1:1: 'version' is missing"),
        ("version: 1\nmodles: {a: {}}\nmodels: {a: {}}", "<server>:2:1: unknown key 'modles'. Did you mean 'models'?"),
        (GOOD + "    polices: {}\n", "<server>:5:5: unknown key 'polices' in models.smollm2. Did you mean 'policies'?"),
        (GOOD + "limits: {secnds: 3}\n", "<server>:5:10: unknown key 'secnds' in limits. Did you mean 'seconds'?"),
        (GOOD + "limits: {seconds: 0}\n", "<server>:5:19: limits.seconds must be above 0, got 0"),
        (GOOD + "streaming: {hold: header}\n", "Did you mean 'headers'?"),
        (GOOD + "keys: yes\n", "keys must be true or false, got 'yes'. Write true or false"),
        ("version: 1\nmodels: {'a b': {}}", "must be a name without spaces, colons and commas"),
        ("version: 1\nmodels: {}", "models must not be empty"),
        ("- a", "a server's file is a mapping with 'version' and 'models'; found a list"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse_config(text)
    assert message in str(caught.value)


def test_the_servers_files_in_the_documents_are_valid() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
    files = re.findall(r"```yaml\n(version: 1\n.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(files) == 3
    for text in files:
        parse_config(text)


def test_paths_are_relative_to_the_file_and_names_stay_names(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(GOOD + "    scorer: s.json\n    policies: {ours: ours.yaml, b: balanced}\nstore: r.db\n")
    config = load_config(file)
    model = config.models["smollm2"]
    assert (model.policy, model.policies["b"]) == ("strict", "balanced")
    assert (model.scorer, model.policies["ours"]) == (str(tmp_path / "s.json"), str(tmp_path / "ours.yaml"))
    assert config.store == str(tmp_path / "r.db")


def test_addresses_and_names_of_served_models_are_no_paths(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(
        "version: 1\nmodels:\n"
        "  a: {model: 'http://127.0.0.1:8000/v1#Qwen/Qwen3-8B', engine_options: {api_key_file: key}}\n"
        "  b: {model: Qwen/Qwen2.5-7B, engine: openai, engine_options: {base_url: 'http://127.0.0.1:8000/v1'}}\n"
        "  c: {model: house.gguf, engine: llama.cpp}\n"
    )
    models = load_config(file).models
    assert [models[name].model for name in "ab"] == ["http://127.0.0.1:8000/v1#Qwen/Qwen3-8B", "Qwen/Qwen2.5-7B"]
    assert models["a"].engine_options == {"api_key_file": str(tmp_path / "key")}
    assert models["c"].model == str(tmp_path / "house.gguf")


def test_any_models_file_gives_a_name_for_clients(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--model", str(tmp_path / "a model: 7B, tuned.gguf")])
    assert isinstance(done.exception, ScorerError)  # of what the name stands for


def listening(host: str, keys: str = "null") -> ServeConfig:
    return parse_config(f"{GOOD}listen: {{host: '{host}'}}\nkeys: {keys}\n")


def test_beyond_loopback_keys_are_needed() -> None:
    assert check_listening(listening("0.0.0.0"))
    assert not check_listening(listening("::1"))
    assert check_listening(listening("127.0.0.1", "true"))
    with pytest.raises(InputError, match="without API keys"):
        check_listening(listening("192.168.1.5", "false"))


def test_a_server_that_needs_keys_does_not_start_without_one(tmp_path: Path) -> None:
    config = listening("0.0.0.0").model_copy(update={"store": str(tmp_path / "r.db")})
    with pytest.raises(InputError, match="Requests need an API key"), loaded_server(config):
        pass


def test_a_key_that_may_ask_unguarded_must_be_there(tmp_path: Path) -> None:
    store = str(tmp_path / "r.db")
    with Access.open(store) as access:
        access.keys.add("webui", grants=[Grant(Role.CALLER)])
    changes = {"store": store, "unguarded_keys": ("web-ui",)}
    config = listening("0.0.0.0").model_copy(update=changes)
    with pytest.raises(InputError, match="Did you mean 'webui'"), loaded_server(config):
        pass


def test_keys_that_may_ask_unguarded_are_refused_where_requests_need_none(tmp_path: Path) -> None:
    config = listening("127.0.0.1").model_copy(update={"store": str(tmp_path / "r.db"), "unguarded_keys": ("local",)})
    with pytest.raises(InputError, match="keys: true"), loaded_server(config):
        pass


@pytest.mark.parametrize(
    ("host", "console", "message"),
    [("127.0.0.1", "", "no account yet"), ("0.0.0.0", "{https: false}", "in the clear")],
)
def test_a_console_needs_an_account_and_https(tmp_path: Path, host: str, console: str, message: str) -> None:
    config = parse_config(f"{GOOD}listen: {{host: '{host}'}}\nconsole: {console}\n")
    place = tmp_path / "r.db"
    with Access.open(place) as access, Store.open(place) as store, pytest.raises(InputError, match=message):
        console_app(config, store, access)


def test_the_console_is_mounted_on_the_server(tmp_path: Path) -> None:
    with Access.open(tmp_path / "r.db") as access, Store.open(tmp_path / "r.db") as store:
        access.users.add("mira", grants=[Grant(Role.ADMIN)], password="a long password of hers")
        server = Server.build(ServedModels({}), ServeSettings())
        server.console = console_app(parse_config(f"{GOOD}console:\n"), store, access)
        with running(create_application(server)) as url:
            page = httpx.get(f"{url}/console/", follow_redirects=True)
            assert httpx.get(f"{url}/v1/models").json() == {"object": "list", "data": []}
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert "password" in page.text


@pytest.mark.parametrize(("proxies", "last"), [("[]", 429), ("['127.0.0.1']", 401)])
def test_attempts_to_sign_in_count_by_the_address_that_a_named_proxy_states(
    tmp_path: Path, proxies: str, last: int
) -> None:
    """Without such a proxy nobody gets more attempts by a header of his own."""
    with Access.open(tmp_path / "r.db") as access, Store.open(tmp_path / "r.db") as store:
        access.users.add("mira", grants=[Grant(Role.ADMIN)], password="a long password of hers")
        server = Server.build(ServedModels({}), ServeSettings())
        server.console = console_app(parse_config(f"{GOOD}console: {{proxies: {proxies}}}\n"), store, access)
        with running(create_application(server)) as url, httpx.Client(base_url=url) as client:
            form, own = {"login": "nobody", "password": "a guess"}, {"sec-fetch-site": "same-origin"}
            found = [
                client.post(
                    "/console/login", data=form, headers={**own, "x-forwarded-for": f"10.0.0.{number}"}
                ).status_code
                for number in range(21)
            ]
    assert found == [*[401] * 20, last]


def test_a_background_route_must_be_in_the_policy() -> None:
    config = parse_config(GOOD + "    background: titles\n")
    with pytest.raises(InputError, match="background route 'titles'"), loaded_server(config):
        pass


def test_a_live_policy_that_guarantees_an_error_rate_is_refused(tmp_path: Path) -> None:
    rules = "[{accept: {max_error_rate: 0.05, confidence: 0.9}}, abstain]"
    policy = f"{{version: 1, name: p, streaming: live, rules: {rules}}}"
    (tmp_path / "p.yaml").write_text(policy)
    config = parse_config(f"{{version: 1, models: {{smollm2: {{policy: {tmp_path / 'p.yaml'}}}}}}}")
    with pytest.raises(PolicyError, match="no certificate covers a live stream"), loaded_server(config):
        pass
