"""The reference engine: a small hybrid model that does all a worker can ask of an engine."""

from __future__ import annotations

from controlplane.config import ModelConfig
from workers.engines.local.engine import LocalEngine
from workers.engines.reference.local_model import ReferenceModel


class ReferenceEngine(LocalEngine):
    """Making one draws the weights and measures a few steps: about a tenth of a second."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(ReferenceModel(config), cache_tokens_max=config.cache_tokens_max)
