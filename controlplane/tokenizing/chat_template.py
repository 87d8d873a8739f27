"""Chat templates: jinja2 in a sandbox, with the names that model authors count on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from controlplane.errors import ConfigError
from controlplane.tokenizing.contract import TemplateRefused

#: Newer than most templates, which know it as the system's role.
_ROLES: Final = {"developer": "system"}


class ChatTemplate:
    """One model's template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """
        Args:
            source: The template.
            special_tokens: Texts such as that of `bos_token`, by name.

        Raises:
            ConfigError: It is no template.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"model.tokenizer: the chat template is broken: {error}") from error
        self._special_tokens = dict(special_tokens)

    def __repr__(self) -> str:
        return "<ChatTemplate>"

    @classmethod
    def missing(cls) -> ChatTemplate:
        """Of a model without one: it refuses everything."""
        return cls(
            "{{ raise_exception('this model has no chat template: use /v1/completions') }}", {}
        )

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """
        The text of a conversation, up to where the answer begins.

        Raises:
            TemplateRefused: The template does not take these messages.
        """
        said = [{"role": _ROLES.get(role, role), "content": text} for role, text in messages]
        try:
            return self._template.render(
                **self._special_tokens, messages=said, add_generation_prompt=True, tools=None,
                documents=None,
            )  # fmt: skip
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TemplateRefused(str(error)) from error


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - JSON
    # jinja2's own escapes what HTML does not like, which a model has never seen.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - templates mean the machine's day
