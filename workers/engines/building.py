"""Makes the engine that a fleet file names."""

from __future__ import annotations

from controlplane.config import ModelConfig
from controlplane.errors import ConfigError
from controlplane.tokenizing import Tokenizer
from controlplane.wire import Role
from workers.address import EngineAddress
from workers.engine import Engine


async def open_engine(
    model: ModelConfig, role: Role, address: EngineAddress | None, tokenizer: Tokenizer
) -> Engine:
    """
    An engine that runs in a server of its own, found and tried.

    Args:
        model: What the fleet serves.
        role: Of the worker.
        address: Of the server.
        tokenizer: Of the fleet.

    Raises:
        ConfigError: No server is named, or it is not what the fleet needs.
        PrfaasError: It does not answer.
    """
    if address is None:
        raise ConfigError(
            f"engine = {model.engine!r} runs in a server of its own: name it with --engine-url "
            "http://HOST:PORT"
        )
    if model.engine == "sglang":
        from workers.engines.sglang import open_sglang  # noqa: PLC0415

        return await open_sglang(model, role, address, tokenizer)
    from workers.engines.vllm import open_vllm  # noqa: PLC0415

    return await open_vllm(model, role, address, tokenizer)


def build_engine(model: ModelConfig) -> Engine:
    """
    Load or draw the weights, and measure a few steps: seconds.

    Raises:
        ConfigError: Its libraries are not installed, or there is no such model.
    """
    # Imported here: an engine brings its own heavy libraries, others never load them.
    if model.engine == "reference":
        from workers.engines.reference.engine import ReferenceEngine  # noqa: PLC0415

        return ReferenceEngine(model)
    try:
        from workers.engines.transformers.engine import TransformersEngine  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'engine = "transformers" needs the package {error.name!r}: pip install "prfaas[torch]"'
        ) from error
    return TransformersEngine(model)
