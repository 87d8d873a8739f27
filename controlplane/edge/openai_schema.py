"""
The requests of the OpenAI API that we serve, checked field by field.

Strict: "1" and true are not integers. One complaint a request, the first: a client fixes one thing
at a time, and collecting a million complaints about one body would be work for free.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
)
from pydantic_core import PydanticCustomError

from controlplane.errors import UnsupportedParameter

SEED_MIN: Final = -(1 << 63)
SEED_MAX: Final = (1 << 63) - 1
STOPS_MAX: Final = 4
STOP_CHARACTERS_MAX: Final = 256
USER_CHARACTERS_MAX: Final = 256
#: No context is longer; it keeps absurd numbers out of messages.
OUTPUT_TOKENS_MAX: Final = (1 << 31) - 1

#: Tags of unions; no field has such a name, so they can be taken out of error paths again.
TEXT_TAG: Final = "<text>"
LIST_TAG: Final = "<list>"

#: Types of the errors that we raise ourselves; `openai_check` words them.
SHAPE_ERROR: Final = "shape_type"
PROMPT_ERROR: Final = "prompt_type"

LONE_SURROGATE: Final = "must not hold a lone surrogate"


def _shape(value: object) -> str | None:
    if isinstance(value, str):
        return TEXT_TAG
    return LIST_TAG if isinstance(value, list) else None


_BY_SHAPE: Final = Discriminator(
    _shape, custom_error_type=SHAPE_ERROR, custom_error_message="expected a string or an array"
)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul_character", "must not hold the character U+0000")
    return text


def _one_prompt(value: object) -> str | list[object]:
    """One prompt; a batch of one is taken out of its list, ids stay unchecked and uncopied."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise UnsupportedParameter(
                f"prompt: {len(value)} prompts in one request are not supported; send one each",
                param="prompt",
            )
        value = value[0]
    if not isinstance(value, str | list):
        raise PydanticCustomError(PROMPT_ERROR, "expected a string or an array of token ids")
    if not value:
        raise PydanticCustomError("prompt_empty", "must not be empty")
    return _without_nul(value) if isinstance(value, str) else value


# Lone surrogates: pydantic refuses them where it measures a length, which needs UTF-8; in long
# texts the tokenizer finds them, because it encodes the text anyway.
LongText: TypeAlias = Annotated[str, AfterValidator(_without_nul)]
StopText: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=STOP_CHARACTERS_MAX), AfterValidator(_without_nul)
]
UserText: TypeAlias = Annotated[
    str, Field(max_length=USER_CHARACTERS_MAX), AfterValidator(_without_nul)
]
OutputTokens: TypeAlias = Annotated[int, Field(ge=1, le=OUTPUT_TOKENS_MAX)]


class _Checked(BaseModel):
    """Base of all parts of a request; `Level.accepted` has named extra fields before."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TextPart(_Checked):
    """A piece of a message's content."""

    type: Literal["text"]
    text: LongText = Field(repr=False)


class ChatMessage(_Checked):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[LongText, Tag(TEXT_TAG)]
        | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag(LIST_TAG)],
        _BY_SHAPE,
    ] = Field(repr=False)

    @property
    def text(self) -> str:
        """The content as one string; parts follow each other with nothing between."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(_Checked):
    """Extras of a stream."""

    include_usage: bool = False


class _Request(_Checked):
    """Parameters of both endpoints."""

    model: Annotated[str, Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: OutputTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=SEED_MIN, le=SEED_MAX)] | None = None
    stop: Annotated[
        Annotated[StopText, Tag(TEXT_TAG)]
        | Annotated[list[StopText], Field(max_length=STOPS_MAX, fail_fast=True), Tag(LIST_TAG)],
        _BY_SHAPE,
    ] = Field(default_factory=list)
    n: Annotated[int, Field(ge=1)] = 1
    user: UserText | None = Field(default=None, repr=False)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, whichever way they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """A stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatCompletionRequest(_Request):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: OutputTokens | None = None


class CompletionRequest(_Request):
    """Body of `POST /v1/completions`."""

    #: Ids are unchecked: only the model's tokenizer knows which there are.
    prompt: Annotated[str | list[object], PlainValidator(_one_prompt)] = Field(repr=False)
