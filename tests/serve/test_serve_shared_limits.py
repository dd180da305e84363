"""Two server processes on one database keep a key's limits together."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from served_child import child

from guard.access import Access, Grant, KeyLimits, Role

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}


def asked(url: str, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/chat/completions", json=ASK, headers=headers, timeout=60)


def test_two_servers_let_in_what_one_key_may_ask_and_no_more(url: str) -> None:
    with Access.open(url) as access:
        requests = access.keys.add("seven", grants=(Grant(Role.CALLER),), limits=KeyLimits(requests_per_minute=7))[1]
        tokens = access.keys.add("tokens", grants=(Grant(Role.CALLER),), limits=KeyLimits(tokens_per_minute=30))[1]
        month = access.keys.add("month", grants=(Grant(Role.CALLER),), limits=KeyLimits(tokens_per_month=30))[1]
    with child(url, keys=True) as (_, first), child(url, keys=True) as (_, second):
        servers = [first, second]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: asked(servers[number % 2], requests), range(20)))
        assert Counter(each.status_code for each in answers) == {200: 7, 429: 13}
        left = [each.headers["x-ratelimit-remaining-requests"] for each in answers if each.status_code == 200]
        assert sorted(left) == ["0", "1", "2", "3", "4", "5", "6"]
        for key, code in ((tokens, "rate_limit_exceeded"), (month, "insufficient_quota")):
            assert asked(first, key).status_code == 200
            refused = asked(second, key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, code)
