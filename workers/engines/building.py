"""Makes the engine that a fleet file names."""

from __future__ import annotations

from controlplane.config import ModelConfig
from controlplane.errors import ConfigError
from workers.engine import Engine


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
