"""The layout of a cache: what it is read from, and what it refuses."""

from __future__ import annotations

import pytest

from controlplane.errors import ConfigError

torch = pytest.importorskip("torch", reason="needs torch: make test-torch")


class DynamicLayer:
    """A layer of attention with two heads, one of them wider in its values."""

    def __init__(self, tokens: int) -> None:
        count = 2 * tokens
        self.keys = torch.arange(count * 3, dtype=torch.float32).reshape(1, 2, tokens, 3)
        self.values = -torch.arange(count * 5, dtype=torch.float32).reshape(1, 2, tokens, 5)


class DynamicSlidingWindowLayer(DynamicLayer):
    """It forgets what is far behind."""


class LinearAttentionLayer:
    """A layer that has a state alone."""

    def __init__(self) -> None:
        self.conv_states = {0: torch.ones(1, 4, 3)}
        self.recurrent_states = {0: torch.ones(1, 2, 2, 2)}
        self.is_conv_states_initialized = {0: True}
        self.is_recurrent_states_initialized = {0: True}


class Cache:
    """Layers, as the library keeps them."""

    def __init__(self, *layers: object) -> None:
        self.layers = layers


def a_codec(*layers: object):  # type: ignore[no-untyped-def]  # noqa: ANN201
    from workers.engines.transformers.kv_codec import KvCodec  # noqa: PLC0415

    return KvCodec(Cache(*layers))


def test_sizes_are_those_of_all_layers() -> None:
    codec = a_codec(LinearAttentionLayer(), DynamicLayer(4), DynamicLayer(4))

    assert codec.attention_bytes_per_token == 2 * 2 * (3 + 5) * 4
    assert codec.state_bytes == 8 + (4 * 3 + 2 * 2 * 2) * 4


def test_pieces_of_blocks_have_the_bytes_of_their_tokens() -> None:
    layer = DynamicLayer(6)
    codec = a_codec(layer)

    piece = codec.attention_piece(Cache(layer), 2, 4)

    assert len(piece) == 2 * codec.attention_bytes_per_token
    keys = torch.frombuffer(bytearray(piece[: 2 * 2 * 3 * 4]), dtype=torch.float32)
    assert torch.equal(keys.reshape(2, 2, 3), layer.keys[0, :, 2:4])


def test_a_state_of_another_position_than_the_attention_is_refused() -> None:
    layers = LinearAttentionLayer(), DynamicLayer(4)
    codec = a_codec(*layers)
    attention = codec.attention_piece(Cache(*layers), 0, 4)
    state = codec.state_piece(Cache(*layers), 3)

    with pytest.raises(ValueError, match="the state is of position 3, the attention of 4"):
        codec.fill(Cache(*layers), [attention], state, torch.device("cpu"))


def test_a_window_cannot_be_moved() -> None:
    with pytest.raises(ConfigError, match="of the kind DynamicSlidingWindowLayer cannot be moved"):
        a_codec(DynamicSlidingWindowLayer(4))


def test_without_full_attention_there_is_nothing_to_serve() -> None:
    with pytest.raises(ConfigError, match="without any layer of full attention"):
        a_codec(LinearAttentionLayer())
