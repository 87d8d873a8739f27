"""The engine around models of the `transformers` library: the paper's own families, end to end."""

from __future__ import annotations

from controlplane.config import ModelConfig
from workers.engines.local.engine import LocalEngine
from workers.engines.transformers.local_model import TransformersModel


class TransformersEngine(LocalEngine):
    """Making one loads or draws the weights and measures a few steps: seconds, for a small one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(TransformersModel(config), cache_tokens_max=config.cache_tokens_max)
