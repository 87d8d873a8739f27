"""The bodies that engines get, field by field."""

from __future__ import annotations

import pytest

from controlplane.wire import Sampling
from workers.engines.remote.legs import KvSide, MooncakeHandoff, NixlHandoff, Prompt, SglangHandoff

PROMPT = Prompt(request_id="req-1.1", model="m", tokens=[5, 6, 7], scope="scope-a")
SAMPLING = Sampling(temperature=0.5, top_p=0.9, seed=3, output_tokens_max=20)
ANSWER = {
    "id": "cmpl-1",
    "kv_transfer_params": {
        "do_remote_prefill": True,
        "remote_host": "0.0.0.0",
        "remote_port": 5600,
        "remote_block_ids": [[1, 2]],
        "unknown": "kept",
    },
}


def test_a_nixl_prefill_asks_for_one_token_and_leaves_all_addresses_empty() -> None:
    leg = NixlHandoff().prefill_leg(PROMPT, {})

    assert leg.path == "/v1/completions"
    assert leg.headers == {"X-Request-Id": "req-1.1"}
    assert leg.body == {
        "model": "m",
        "prompt": [5, 6, 7],
        "cache_salt": "scope-a",
        "max_tokens": 1,
        "temperature": 0,
        "stream": False,
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        },
    }


def test_a_nixl_decode_carries_the_parameters_unread() -> None:
    handoff = NixlHandoff()

    leg = handoff.decode_leg(PROMPT, handoff.handle(ANSWER), SAMPLING)

    assert leg.body == {
        "model": "m",
        "prompt": [5, 6, 7],
        "cache_salt": "scope-a",
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": 20,
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
        "kv_transfer_params": ANSWER["kv_transfer_params"],
    }


def test_a_request_without_a_seed_sends_none() -> None:
    leg = NixlHandoff().decode_leg(PROMPT, {}, Sampling(output_tokens_max=1))

    assert "seed" not in leg.body


def test_the_address_is_rewritten_where_the_other_datacenter_needs_another() -> None:
    handle = NixlHandoff(KvSide(host="203.0.113.7", port=45600)).handle(ANSWER)

    assert (handle["remote_host"], handle["remote_port"]) == ("203.0.113.7", 45600)
    assert handle["unknown"] == "kept"
    assert ANSWER["kv_transfer_params"]["remote_host"] == "0.0.0.0", "the answer itself stays"  # type: ignore[index]


@pytest.mark.parametrize("answer", [{}, {"kv_transfer_params": None}, {"kv_transfer_params": {}}])
def test_a_server_without_the_connector_is_told_by_its_answer(answer: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="without kv_transfer_params: start it with"):
        NixlHandoff().handle(answer)


def test_mooncake_meets_by_a_transfer_id_at_the_rank_that_prefills() -> None:
    handoff = MooncakeHandoff(bootstrap_url="http://p:8998", engine_id="e-1", rank=1)
    handle = handoff.begin()

    prefill = handoff.prefill_leg(PROMPT, handle)
    decode = handoff.decode_leg(PROMPT, handle, SAMPLING)

    assert handoff.is_paired
    assert prefill.headers["X-data-parallel-rank"] == "1"
    assert prefill.body["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "transfer_id": handle["transfer_id"],
    }
    assert decode.body["kv_transfer_params"] == {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "transfer_id": handle["transfer_id"],
        "remote_bootstrap_addr": "http://p:8998",
        "remote_engine_id": "e-1",
    }
    assert str(handle["transfer_id"]).startswith("xfer-")


def test_sglang_meets_in_a_room_that_no_other_pair_has() -> None:
    handoff = SglangHandoff(host="p.east", port=8998)
    handle, other = handoff.begin(), handoff.begin()

    prefill = handoff.prefill_leg(PROMPT, handle)
    decode = handoff.decode_leg(PROMPT, handle, SAMPLING)

    assert handle["bootstrap_room"] != other["bootstrap_room"]
    assert 0 <= handle["bootstrap_room"] < 1 << 63
    for leg in (prefill, decode):
        assert leg.path == "/generate"
        assert leg.body["input_ids"] == [5, 6, 7]
        assert {name: leg.body[name] for name in handle} == handle
    assert decode.body["sampling_params"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_new_tokens": 20,
        "sampling_seed": 3,
    }
