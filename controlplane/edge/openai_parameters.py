"""
Parameters of the OpenAI API that we do not have, each refused by its name.

Ignoring one would answer a question that nobody asked: a client that sends `tools` and gets plain
text has been lied to. Values that change nothing are let through, because SDKs send them unasked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from controlplane.edge.json_body import shown
from controlplane.errors import UnsupportedParameter

#: Where a value stands in the body: `("messages", 2, "content")`.
Path: TypeAlias = tuple[str | int, ...]

#: Name of a known parameter to the values, beside null, that ask for nothing.
Neutral: TypeAlias = Mapping[str, tuple[object, ...]]

_BOTH_NEUTRAL: Final[Neutral] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
}

CHAT_NEUTRAL: Final[Neutral] = {
    **_BOTH_NEUTRAL,
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

COMPLETION_NEUTRAL: Final[Neutral] = {
    **_BOTH_NEUTRAL,
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}

#: An assistant's answer, sent back as the SDK gave it, has most of these as null or empty.
MESSAGE_NEUTRAL: Final[Neutral] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}

PART_NEUTRAL: Final[Neutral] = {"file": (), "image_url": (), "input_audio": (), "refusal": ()}

STREAM_OPTIONS_NEUTRAL: Final[Neutral] = {"include_obfuscation": (False,)}


@dataclass(frozen=True, slots=True)
class Level:
    """What one kind of object in a request may hold."""

    supported: frozenset[str]
    neutral: Neutral

    def accepted(self, fields: dict[str, object], where: Path = ()) -> dict[str, object]:
        """
        The fields that mean something: nulls and neutral values are left out.

        Raises:
            UnsupportedParameter: A known parameter that we do not have, or an unknown one.
        """
        if fields.keys() <= self.supported and None not in fields.values():
            return fields
        kept: dict[str, object] = {}
        for name, value in fields.items():
            if name not in self.supported:
                self._check_neutral(name, value, where)
            elif value is not None:
                kept[name] = value
        return kept

    def _check_neutral(self, name: str, value: object, where: Path) -> None:
        path = path_of((*where, name))
        neutral = self.neutral.get(name)
        if neutral is None:
            raise UnsupportedParameter(
                f"{path}: unknown parameter; known here: {', '.join(sorted(self.supported))}",
                param=path,
            )
        if value is None or any(_is_same(value, other) for other in neutral):
            return
        harmless = "".join(f" or send {json.dumps(other)}" for other in neutral)
        raise UnsupportedParameter(
            f"{path}: not supported by this service; leave it out{harmless}", param=path
        )


def path_of(where: Path) -> str:
    """A place in the body as clients write it: `messages[2].content`."""
    parts: list[str] = []
    for step in where:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        else:
            parts.append(f".{shown(step)}" if parts else shown(step))
    return "".join(parts)


def _is_same(value: object, other: object) -> bool:
    """Equal, and not a boolean where a number was meant: in Python `False == 0`."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other
