"""
`python -m benchmarks.hybrid`: what KV a hybrid network makes, how long it takes, and what moving it costs.

The paper's Table 5, for networks of the `transformers` library with drawn weights: prefill time, bytes of
attention KV and of linear-attention state by length, and the rate of a link that would keep up. `--size real`
has the shape of the published models but for their experts, of which there are a few: what a token computes is the
same, and the weights fit one GPU. Without a GPU everything runs small on the processor, and says so.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

#: Shapes as published (configuration defaults of the library), with so many experts.
_REAL: Final[dict[str, dict[str, Any]]] = {
    "kimi_linear": {"num_local_experts": 16},
    "qwen3_next": {"num_experts": 16},
}
_LENGTHS: Final = {"small": (256, 512, 1024, 2048), "real": (1024, 8192, 32_768, 131_072)}
_RUNS: Final = 3
#: Of the prompt that shows what KV looks like.
_PROBE_TOKENS: Final = 64
_BITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One length; medians."""

    tokens: int
    prefill_s: float
    attention_bytes: int
    state_bytes: int
    #: From the device to bytes in memory, and back into an empty cache.
    export_s: float
    import_s: float

    @property
    def kv_bits_per_s(self) -> float:
        """What a link needs to carry KV as fast as it is made (the paper's throughput of KV)."""
        return (self.attention_bytes + self.state_bytes) * _BITS / self.prefill_s


class Bench:
    """One network, and the layout of its KV."""

    def __init__(self, network: Any, *, chunk_tokens: int) -> None:  # noqa: ANN401 - the library's
        """
        Args:
            network: On its device, ready to compute.
            chunk_tokens: Tokens that are computed at once.
        """
        from workers.engines.transformers.kv_codec import KvCodec  # noqa: PLC0415 - an extra

        self._network = network
        self._chunk_tokens = chunk_tokens
        self._codec = KvCodec(self._prefilled(_PROBE_TOKENS))

    def measure(self, tokens: int) -> Figures:
        """Prefill, export and import a prompt."""
        from transformers import DynamicCache  # noqa: PLC0415 - an extra

        codec, network = self._codec, self._network
        prefill_s, cache = _timed(lambda: self._prefilled(tokens))
        export_s, (attention, state) = _timed(
            lambda: (codec.attention_piece(cache, 0, tokens), codec.state_piece(cache, tokens))
        )
        import_s, _ = _timed(
            lambda: codec.fill(
                DynamicCache(config=network.config), [attention], state, network.device
            )
        )
        return Figures(
            tokens=tokens,
            prefill_s=prefill_s,
            attention_bytes=len(attention),
            state_bytes=len(state),
            export_s=export_s,
            import_s=import_s,
        )

    def _prefilled(self, tokens: int) -> Any:  # noqa: ANN401 - the library's
        import torch  # noqa: PLC0415 - an extra
        from transformers import DynamicCache  # noqa: PLC0415

        network = self._network
        generator = torch.Generator().manual_seed(tokens)
        ids = torch.randint(0, network.config.vocab_size, (1, tokens), generator=generator)
        cache = DynamicCache(config=network.config)
        with torch.inference_mode():
            for part in ids.to(network.device).split(self._chunk_tokens, dim=1):
                network.base_model(input_ids=part, past_key_values=cache, use_cache=True)
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        return cache


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    result = None
    for _ in range(_RUNS):
        result = None  # What the run before made must not be in the way.
        start_s = perf_counter()
        result = work()
        times.append(perf_counter() - start_s)
    return median(times), result


def _network(family: str, size: str, device: str) -> Any:  # noqa: ANN401
    import torch  # noqa: PLC0415 - an extra

    from controlplane.config import TransformersConfig  # noqa: PLC0415
    from workers.engines.transformers.network import (  # noqa: PLC0415
        draw_network,
        load_network,
        vocabulary_of,
    )

    if size == "small":
        config = TransformersConfig.model_validate({"family": family, "device": device})
        return load_network(
            config, vocabulary_of(None), seed=0, context_tokens_max=max(_LENGTHS[size])
        )
    network = draw_network(family, _REAL[family], seed=0, dtype=torch.bfloat16)
    return network.to(device).eval()


def _show(console: Console, title: str, found: Sequence[Figures]) -> None:
    table = Table(title=title)
    for name in (
        "tokens", "prefill, s", "attention KV, MB", "state, MB", "KV rate, Gbit/s", "export, ms", "import, ms",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(
            f"{one.tokens:,}",
            f"{one.prefill_s:.3f}",
            f"{one.attention_bytes / 1e6:,.2f}",
            f"{one.state_bytes / 1e6:,.2f}",
            f"{one.kv_bits_per_s / 1e9:.3f}",
            f"{one.export_s * 1e3:.1f}",
            f"{one.import_s * 1e3:.1f}",
        )
    console.print(table)


@click.command()
@click.option(
    "--family", type=click.Choice(sorted(_REAL)), default="kimi_linear", show_default=True
)
@click.option(
    "--size", type=click.Choice(["auto", "small", "real"]), default="auto", show_default=True
)
@click.option(
    "--chunk", "chunk_tokens", type=click.IntRange(64, 1 << 20), default=8192, show_default=True
)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
def main(*, family: str, size: str, chunk_tokens: int, json_path: Path | None) -> None:
    """Measure one family of hybrid networks."""
    try:
        import torch  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise click.ClickException('torch is not installed: pip install "prfaas[torch]"') from error
    warnings.simplefilter("ignore")
    console = Console(width=max(110, Console().width))
    has_gpu = torch.cuda.is_available()
    size = size if size != "auto" else "real" if has_gpu else "small"
    device = "cuda" if has_gpu else "cpu"
    place = torch.cuda.get_device_name() if has_gpu else f"{platform.machine()}, one thread"
    if not has_gpu:
        torch.set_num_threads(1)
        console.print(f"no GPU here: a {size} network on the processor")
    network = _network(family, size, device)
    bench = Bench(network, chunk_tokens=chunk_tokens)
    found = [bench.measure(tokens) for tokens in _LENGTHS[size]]
    _show(console, f"{family}, {size}, {network.dtype}, {place}", found)
    if json_path is not None:
        document = {
            "family": family,
            "size": size,
            "device": place,
            "lengths": [asdict(one) for one in found],
        }
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
