"""Fields that a router does not know: passed on, or refused by name, and never dropped without a word."""

from __future__ import annotations

from conformance.router import Router
from conformance.servers import Servers

PROMPT = "Fields of next year. " * 8


def test_an_unknown_field_reaches_the_engine_or_is_refused_by_name(
    router: Router, servers: Servers
) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        asked = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": [
            {"role": "user", "content": PROMPT}]}  # fmt: skip

        answer = router.ask(path, a_field_of_next_year={"nested": [1, None]}, **asked)

        if answer.status == 200:
            bodies = [body for fake in servers.decode for body in fake.bodies]
            assert bodies[-1].get("a_field_of_next_year") == {"nested": [1, None]}
        else:
            assert 400 <= answer.status < 500
            assert b"a_field_of_next_year" in answer.body


def test_a_known_field_that_is_not_had_is_refused_or_passed_on(
    router: Router, servers: Servers
) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}

    answer = router.chat(PROMPT, tools=[tool])

    if answer.status == 200:
        assert [body for fake in servers.decode for body in fake.bodies][-1]["tools"] == [tool]
    else:
        assert 400 <= answer.status < 500
        assert b"tools" in answer.body


def test_a_client_does_not_choose_where_kv_comes_from(router: Router, servers: Servers) -> None:
    """The servers refuse parameters that prefill has not answered with."""
    evil = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_host": "169.254.169.254",
        "remote_port": 80,
    }

    answer = router.complete(PROMPT, kv_transfer_params=evil)

    assert answer.status == 200 or 400 <= answer.status < 500
    assert not servers.violations()
