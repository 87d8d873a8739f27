"""Settings of the model that a fleet serves; a part of `controlplane/config.py`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from controlplane.config_health import Section
from controlplane.config_server import EngineServerConfig


class TransformersConfig(Section):
    """A model of the `transformers` library, computed in the worker's own process."""

    #: A small network of this family, with weights that `seed` draws; not used with `path`.
    family: Literal["qwen3_next", "kimi_linear"] = "qwen3_next"
    #: A checkpoint directory on the worker's machine. One with a `config.json` alone gets drawn weights.
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    #: Two workers make the same tokens in float32; in bfloat16 but for near-ties.
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    #: Of the processor. Workers that share a machine are many times slower with more than one each.
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class ModelConfig(Section):
    """The model that all workers of the fleet serve."""

    engine: Literal["reference", "transformers", "vllm", "sglang"] = "reference"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,96}$")] = "prfaas-reference"
    #: Directory with the model's tokenizer files; without one, text is bytes.
    tokenizer: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    #: Of drawn weights.
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    #: Of the reference model.
    layers: Annotated[int, Field(ge=4, le=8, multiple_of=4)] = 8
    context_tokens_max: Annotated[int, Field(ge=128, le=131_072)] = 16_384
    #: Tokens of KV a prefix cache holds per worker.
    cache_tokens_max: Annotated[int, Field(ge=0, le=1 << 22)] = 65_536
    decode_slots: Annotated[int, Field(ge=1, le=4096)] = 8
    #: Requests a worker takes beyond those it runs.
    queue_requests_max: Annotated[int, Field(ge=1, le=10_000)] = 64
    transformers: TransformersConfig = TransformersConfig()
    server: EngineServerConfig = EngineServerConfig()

    @property
    def is_served(self) -> bool:
        """The engine runs in servers of its own, with an agent beside each."""
        return self.engine in {"vllm", "sglang"}

    @model_validator(mode="after")
    def _settings_fit_the_engine(self) -> Self:
        if self.engine == "reference" and self.transformers != TransformersConfig():
            raise ValueError('[model.transformers] is for engine = "transformers"')
        if self.is_served and self.tokenizer is None:
            raise ValueError(
                f'engine = "{self.engine}" needs tokenizer = "DIR", the directory with the tokenizer files of '
                "the served model"
            )
        if self.engine == "reference" and self.tokenizer is not None:
            raise ValueError("the reference model reads bytes: leave tokenizer out")
        if not self.is_served and self.server != EngineServerConfig():
            raise ValueError('[model.server] is for engine = "vllm" or "sglang"')
        return self
