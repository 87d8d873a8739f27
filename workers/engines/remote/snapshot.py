"""What an engine server says of itself in its metrics, as numbers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSources:
    """Where the prompt tokens of all requests so far came from, by the engine's own count."""

    computed: int = 0
    cached: int = 0
    external: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.computed + self.cached + self.external

    def since(self, before: PromptSources) -> PromptSources:
        """What was added."""
        return PromptSources(
            computed=self.computed - before.computed,
            cached=self.cached - before.cached,
            external=self.external - before.external,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One look at a server; ranks are added up."""

    running: int = 0
    waiting: int = 0
    #: Of those, the ones that wait for nothing but room.
    waiting_for_room: int = 0
    #: Part of the KV blocks in use, 0 to 1.
    kv_use: float = 0.0
    preemptions_total: int = 0
    #: None where the engine does not tell.
    sources: PromptSources | None = None
    output_tokens_total: int = 0
    #: Steps of the scheduler.
    steps_total: int = 0
    #: What the connector moved into this engine: bytes, and seconds.
    moved_bytes_total: int = 0
    moving_s_total: float = 0.0
    #: Data-parallel ranks behind the URL.
    ranks: int = 1
    #: Unix time at which the process started; another one is another life. 0 where it is not told.
    started_s: float = 0.0
    #: Of the cache, as the engine configured itself.
    cache: Mapping[str, str]
    #: Whether there are metrics of the NIXL connector.
    has_nixl: bool = False

    @property
    def cache_tokens(self) -> int:
        """Room of its cache; 0 where it does not tell."""
        block = self.cache.get("block_size", "")
        blocks = self.cache.get("num_gpu_blocks", "")
        return int(block) * int(blocks) if block.isdecimal() and blocks.isdecimal() else 0


#: Metrics of vLLM 0.11 to 0.33; others are passed over unread.
_VLLM: Final = (
    "num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason", "kv_cache_usage_perc",
    "num_preemptions_total", "prompt_tokens_by_source_total", "generation_tokens_total",
    "iteration_tokens_total_count", "nixl_bytes_transferred_sum",
    "nixl_xfer_time_seconds_sum", "cache_config_info",
)  # fmt: skip
_VLLM_LINE: Final = re.compile(
    rf"^(?:vllm:({'|'.join(_VLLM)})|(process_start_time_seconds))(?:\{{(.*)\}})? (\S+)$",
    re.MULTILINE,
)


def vllm_snapshot(text: str) -> Snapshot:
    """
    Read the metrics page of a vLLM server.

    Raises:
        ValueError: A number is none.
    """
    sums: dict[str, float] = {}
    cache: dict[str, str] = {}
    ranks = 0
    for name, started, labels, value in _VLLM_LINE.findall(text):
        found = dict(_LABEL.findall(labels))
        if name == "cache_config_info":
            cache = found
            continue
        ranks += name == "num_requests_running"
        detail = found.get("source") or found.get("reason")
        key = f"{name or started}:{detail}" if detail else name or started
        sums[key] = sums.get(key, 0.0) + float(value)

    def whole(key: str) -> int:
        return int(sums.get(key, 0))

    by_source = "prompt_tokens_by_source_total"
    return Snapshot(
        running=whole("num_requests_running"),
        waiting=whole("num_requests_waiting"),
        waiting_for_room=whole("num_requests_waiting_by_reason:capacity"),
        kv_use=min(1.0, sums.get("kv_cache_usage_perc", 0.0) / max(1, ranks)),
        preemptions_total=whole("num_preemptions_total"),
        sources=PromptSources(
            computed=whole(f"{by_source}:local_compute"),
            cached=whole(f"{by_source}:local_cache_hit"),
            external=whole(f"{by_source}:external_kv_transfer"),
        )
        if f"{by_source}:local_compute" in sums
        else None,
        output_tokens_total=whole("generation_tokens_total"),
        steps_total=whole("iteration_tokens_total_count"),
        moved_bytes_total=whole("nixl_bytes_transferred_sum"),
        moving_s_total=sums.get("nixl_xfer_time_seconds_sum", 0.0),
        started_s=sums.get("process_start_time_seconds", 0.0),
        ranks=max(1, ranks),
        cache=cache,
        has_nixl="nixl_bytes_transferred_sum" in sums,
    )


_SGLANG: Final = (
    "num_running_reqs", "num_queue_reqs", "token_usage", "prompt_tokens_total",
    "generation_tokens_total",
)  # fmt: skip
_SGLANG_LINE: Final = re.compile(
    rf"^(?:sglang:({'|'.join(_SGLANG)})|(process_start_time_seconds))(?:\{{(.*)\}})? (\S+)$",
    re.MULTILINE,
)


def sglang_snapshot(text: str) -> Snapshot:
    """
    Read the metrics page of an SGLang server; it does not tell where prompt tokens came from.

    Raises:
        ValueError: A number is none, or the server was started without metrics.
    """
    sums: dict[str, float] = {}
    for name, started, _, value in _SGLANG_LINE.findall(text):
        sums[name or started] = sums.get(name or started, 0.0) + float(value)
    if "num_running_reqs" not in sums:
        raise ValueError("its /metrics page has no sglang: metrics")
    tokens = sums.get("prompt_tokens_total", 0.0) + sums.get("generation_tokens_total", 0.0)
    return Snapshot(
        running=int(sums["num_running_reqs"]),
        waiting=int(sums.get("num_queue_reqs", 0)),
        waiting_for_room=int(sums.get("num_queue_reqs", 0)),
        kv_use=min(1.0, sums.get("token_usage", 0.0)),
        output_tokens_total=int(sums.get("generation_tokens_total", 0)),
        # Whatever moves is a sign of life.
        steps_total=int(tokens),
        started_s=sums.get("process_start_time_seconds", 0.0),
        cache={},
    )
