"""Values for tests: each argument has a default, so that a test names only what it is about."""

from __future__ import annotations

from typing import Any

from controlplane.domain.byte_tokenizer import encode_text
from controlplane.domain.cluster import ClusterView, LinkView, WorkerView
from controlplane.domain.decision import RequestFeatures
from controlplane.domain.tokens import TokenIds
from controlplane.wire import (
    DecodeJob,
    KvLocation,
    KvManifest,
    OutputShape,
    PrefillJob,
    PrefixAsk,
    Sampling,
    WorkerBeat,
)


def a_worker(worker_id: str = "west/p1", **overrides: Any) -> WorkerView:
    """
    An idle worker; `west/p1` prefills in west, `east/d2` decodes in east.

    Prefill takes 10 ms and 1 ms a token; KV has 1,000 bytes a token and 50,000 bytes of state.
    """
    datacenter, _, name = worker_id.partition("/")
    values: dict[str, Any] = {
        "worker_id": worker_id,
        "datacenter": datacenter,
        "role": "decode" if name.startswith("d") else "prefill",
        "incarnation": "i1",
        "url": "http://127.0.0.1:9000",
        "model": "m",
        "fingerprint": "f",
        "block_tokens": 16,
        "context_tokens_max": 4096,
        "slots": 4,
        "requests_max": 16,
        "prefill_s_per_token": 0.001,
        "prefill_fixed_s": 0.01,
        "decode_step_s": 0.02,
        "kv_bytes_per_token": 1000,
        "kv_state_bytes": 50_000,
        "can_export_prefix": True,
    }
    return WorkerView(**{**values, **overrides})


def a_link(
    from_datacenter: str = "east", to_datacenter: str = "west", **overrides: Any
) -> LinkView:
    """An idle link of one megabyte a second, 20 ms long."""
    values: dict[str, Any] = {
        "from_datacenter": from_datacenter,
        "to_datacenter": to_datacenter,
        "capacity_bps": 8e6,
        "rtt_s": 0.02,
    }
    return LinkView(**{**values, **overrides})


def a_view(*workers: WorkerView, **overrides: Any) -> ClusterView:
    """These workers, or one prefill worker in east and west each and a decode worker in west."""
    values: dict[str, Any] = {
        "epoch": 1,
        "age_s": 0.1,
        "home_datacenter": "west",
        "workers": workers or (a_worker("east/p1"), a_worker("west/d1"), a_worker("west/p1")),
        "links": (a_link(),),
    }
    return ClusterView(**{**values, **overrides})


def a_request(**overrides: Any) -> RequestFeatures:
    """A prompt of 101 tokens, 100 of them for prefill, that nobody has cached."""
    values: dict[str, Any] = {
        "request_id": "r1",
        "model": "m",
        "input_tokens": 101,
        "output_tokens_max": 16,
        "sequence": 0,
    }
    return RequestFeatures(**{**values, **overrides})


def a_beat(worker_id: str = "west/p1", **overrides: Any) -> WorkerBeat:
    """The first heartbeat of an idle worker that holds nothing; ids as for `a_worker`."""
    worker = a_worker(worker_id)
    values: dict[str, Any] = {
        "worker_id": worker.worker_id,
        "datacenter": worker.datacenter,
        "role": worker.role,
        "incarnation": worker.incarnation,
        "sequence": 1,
        "url": worker.url,
        "model": worker.model,
        "fingerprint": worker.fingerprint,
        "vocabulary_size": 272,
        "block_tokens": worker.block_tokens,
        "context_tokens_max": worker.context_tokens_max,
        "requests_max": worker.requests_max,
        "slots": worker.slots,
    }
    return WorkerBeat(**{**values, **overrides})


def a_prompt(length: int = 100) -> TokenIds:
    """So many letters, as tokens."""
    return encode_text("x" * length)


def a_manifest(**overrides: Any) -> KvManifest:
    """A segment of 99 tokens, without groups."""
    values: dict[str, Any] = {
        "fingerprint": "f",
        "scope": "scope",
        "token_count": 99,
        "block_tokens": 16,
        "groups": (),
    }
    return KvManifest(**{**values, **overrides})


def a_location(**overrides: Any) -> KvLocation:
    """Where a segment is that nobody holds."""
    values: dict[str, Any] = {
        "worker_id": "east/p1",
        "datacenter": "east",
        "incarnation": "i1",
        "segment_id": "segment-1",
        "generation": 1,
        "host": "127.0.0.1",
        "port": 1,
        "lease_s": 30.0,
        "manifest": a_manifest(),
    }
    return KvLocation(**{**values, **overrides})


def a_prefill_job(**overrides: Any) -> PrefillJob:
    """For `east/p1` and a decode worker in west."""
    values: dict[str, Any] = {
        "request_id": "req-1.1",
        "incarnation": "i1",
        "fingerprint": "f",
        "scope": "scope",
        "token_width_bytes": 2,
        "destination": "west",
        "deadline_s": 60.0,
    }
    return PrefillJob(**{**values, **overrides})


def a_prefix_ask(**overrides: Any) -> PrefixAsk:
    """For `east/p1`."""
    values: dict[str, Any] = {
        "request_id": "req-1.1",
        "incarnation": "i1",
        "fingerprint": "f",
        "scope": "scope",
        "token_width_bytes": 2,
    }
    return PrefixAsk(**(values | overrides))


def an_output(**overrides: Any) -> OutputShape:
    """A streamed completion."""
    values: dict[str, Any] = {
        "kind": "completion",
        "response_id": "cmpl-1",
        "model": "m",
        "created": 1_700_000_000,
        "is_stream": True,
    }
    return OutputShape(**{**values, **overrides})


def a_decode_job(**overrides: Any) -> DecodeJob:
    """Greedy, sixteen tokens, for `west/d1`."""
    values: dict[str, Any] = {
        "request_id": "req-1.1",
        "incarnation": "i1",
        "scope": "scope",
        "token_width_bytes": 2,
        "location": a_location(),
        "sampling": Sampling(temperature=0, output_tokens_max=16),
        "output": an_output(),
        "deadline_s": 60.0,
    }
    return DecodeJob(**{**values, **overrides})
