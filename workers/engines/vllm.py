"""vLLM: found, tried, and only then spoken for."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from yarl import URL

from controlplane.config_model import ModelConfig
from controlplane.config_server import EngineServerConfig
from controlplane.errors import ConfigError, PrfaasError, WorkerLost
from controlplane.observe.logs import get_logger
from controlplane.tokenizing import Tokenizer
from controlplane.wire import Role, Sampling
from workers.address import EngineAddress
from workers.engines.remote.description import (
    event_sources,
    prefixes_of,
    profile_of_server,
    spec_of,
    with_sizes,
)
from workers.engines.remote.engine import RemoteEngine, Server, wait_for
from workers.engines.remote.facts import EngineFacts, check_tokenizer, find_mooncake, find_vllm
from workers.engines.remote.http import EngineHttp
from workers.engines.remote.legs import (
    Handoff,
    KvSide,
    MooncakeHandoff,
    NixlHandoff,
    Prompt,
    plain_leg,
)
from workers.engines.remote.output import VllmReader
from workers.engines.remote.snapshot import Snapshot, vllm_snapshot
from workers.engines.remote.timing import Timing

_log = get_logger()

_LOOK_S: Final = 2.0
#: The trial: a prompt of so many drawn tokens, twice as many, and so many tokens of output.
_TRIAL_TOKENS: Final = 256
_TRIAL_OUTPUT: Final = 8
#: Words, digits, blanks, an accent, another script: where tokenizers differ.
_TRIAL_TEXT: Final = "Prefill here,  decode there: 1234 tokens\n\tnaïve 東京 <|x|>"
#: Longest for all of it; the first request may compile.
_TRIAL_S: Final = 300.0
#: Ids below are in any vocabulary, and no special tokens of the common ones.
_TRIAL_IDS: Final = range(300, 2000)


async def open_vllm(
    model: ModelConfig, role: Role, address: EngineAddress, tokenizer: Tokenizer
) -> RemoteEngine:
    """
    Wait for a vLLM server, find out what it is, and try it.

    Args:
        model: What the fleet serves.
        role: What the server does for it.
        address: Of the server.
        tokenizer: Of the fleet.

    Raises:
        ConfigError: It is not what the fleet needs; says which field and what to do.
        PrfaasError: It did not answer within `start_timeout_s`.
    """
    http = EngineHttp(address.url, api_key=address.api_key)
    config = model.server
    profile = await asyncio.to_thread(profile_of_server, address, config)

    async def find() -> tuple[EngineFacts, Snapshot]:
        return await find_vllm(
            http,
            model=model.name,
            context_tokens_max=model.context_tokens_max,
            revision=config.revision,
            connector=config.connector,
        )

    async with AsyncExitStack() as stack:
        stack.push_async_callback(http.close)
        facts, _ = await wait_for(find, timeout_s=config.start_timeout_s)
        ours = tokenizer.encode_text(_TRIAL_TEXT).to_list()
        await check_tokenizer(http, model=model.name, text=_TRIAL_TEXT, ours=ours)
        config = await asyncio.to_thread(
            partial(with_sizes, model, profile, cache_dtype=facts.cache_dtype)
        )
        server = await _kind(http, config, role, address)
        timing = await _try(http, server.handoff, facts, role)
        if profile is not None:
            timing = Timing.of_profile(profile, timing)
        first = await _look(http)
        sources = event_sources(address, config, first.ranks)
        # The engine closes it from now on.
        stack.pop_all()
    spec = spec_of(facts, model, tokenizer.vocabulary_size)
    _log.info("engine.found", model=spec.model, fingerprint=spec.fingerprint, url=http.url)
    prefixes = prefixes_of(spec, config, first, sources)
    engine = RemoteEngine(http, server, spec, config, timing, first, prefixes=prefixes)
    engine.start()
    return engine


async def _kind(
    http: EngineHttp, config: EngineServerConfig, role: Role, address: EngineAddress
) -> Server:
    """
    A vLLM server with the connector that the fleet uses.

    Raises:
        ConfigError: Mooncake's bootstrap is not where it should be.
    """
    if config.connector == "nixl":
        side = KvSide(host=address.kv_host, port=address.kv_port)
        return Server(handoff=NixlHandoff(side), reader=VllmReader, look=partial(_look, http))
    host = address.kv_host or URL(address.url).host
    bootstrap_url = f"http://{host}:{address.kv_port or config.bootstrap_port}"
    if role == "decode":
        # Where to go comes with each handle.
        handoff = MooncakeHandoff(bootstrap_url=bootstrap_url, engine_id="")
        return Server(handoff=handoff, reader=VllmReader, look=partial(_look, http))
    engine_id = await find_mooncake(http, bootstrap_url)
    handoff = MooncakeHandoff(bootstrap_url=bootstrap_url, engine_id=engine_id)
    started_s = (await _look(http)).started_s

    async def look() -> Snapshot:
        nonlocal started_s
        seen = await _look(http)
        if seen.started_s != started_s:
            handoff.move_to(await find_mooncake(http, bootstrap_url))
            started_s = seen.started_s
        return seen

    return Server(handoff=handoff, reader=VllmReader, look=look)


async def _look(http: EngineHttp) -> Snapshot:
    return vllm_snapshot(await http.get("/metrics", timeout_s=_LOOK_S))


async def _try(http: EngineHttp, handoff: Handoff, facts: EngineFacts, role: Role) -> Timing:
    """
    One request of the kind that it will get: what can refuse it, refuses it now.

    Raises:
        ConfigError: The server cannot do what its role needs.
    """
    size = min(_TRIAL_TOKENS, facts.context_tokens_max // 4)
    trial = _Trial(http, handoff, facts, size)
    try:
        async with asyncio.timeout(_TRIAL_S):
            return await (trial.prefill() if role == "prefill" else trial.decode())
    except (PrfaasError, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"the engine at {http.url} failed a trial request for {role}: {error}"
        ) from error


class _Trial:
    """Requests whose times are the first that is known of a server."""

    def __init__(self, http: EngineHttp, handoff: Handoff, facts: EngineFacts, size: int) -> None:
        self._http = http
        self._handoff = handoff
        self._facts = facts
        self._size = size
        # Of the process: two trials of one server must not find each other's prefix.
        self._random = random.Random()

    async def prefill(self) -> Timing:
        """Two lengths, so that what a request costs is told from what a token costs."""
        await self._prefill_s(self._size)
        short_s = await self._prefill_s(self._size)
        long_s = await self._prefill_s(2 * self._size)
        per_token_s = max(0.0, long_s - short_s) / self._size
        return Timing(
            prefill_s_per_token=per_token_s or long_s / (2 * self._size),
            prefill_fixed_s=max(0.0, short_s - per_token_s * self._size),
        )

    async def decode(self) -> Timing:
        """A few tokens without any transfer: that needs the other side."""
        leg = plain_leg(self._prompt(self._size), Sampling(output_tokens_max=_TRIAL_OUTPUT))
        reader, times_s = VllmReader(), list[float]()
        async for event in self._http.events(
            leg.path, {**leg.body, "ignore_eos": True}, leg.headers
        ):
            if "error" in event:
                raise WorkerLost(f"it answered with an error: {event['error']}")
            times_s.extend(time.monotonic() for _ in reader.read(event))
        if len(times_s) < _TRIAL_OUTPUT:
            raise WorkerLost(f"it made {len(times_s)} of {_TRIAL_OUTPUT} tokens")
        step_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
        return Timing(decode_step_s=step_s)

    async def _prefill_s(self, tokens: int) -> float:
        prompt = self._prompt(tokens)
        if self._handoff.is_paired:
            # Its KV would be held for a partner that never comes.
            leg = plain_leg(prompt, Sampling(temperature=0, output_tokens_max=1))
            began_s = time.monotonic()
            async for _ in self._http.events(leg.path, leg.body, leg.headers):
                continue
            return time.monotonic() - began_s
        leg = self._handoff.prefill_leg(prompt, self._handoff.begin())
        began_s = time.monotonic()
        self._handoff.handle(await self._http.post(leg.path, leg.body, leg.headers))
        return time.monotonic() - began_s

    def _prompt(self, tokens: int) -> Prompt:
        ids = self._random.choices(_TRIAL_IDS, k=tokens)
        name = f"prfaas-trial-{self._random.getrandbits(64):x}"
        return Prompt(request_id=name, model=self._facts.model, tokens=ids, scope=name)
