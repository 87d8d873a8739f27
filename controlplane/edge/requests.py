"""A body to a prompt in tokens with its block hashes: all the router needs of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal, TypeAlias, cast

from controlplane.domain.prefix import BlockHash, block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.edge.json_body import parse_object
from controlplane.edge.openai_check import chat_request, completion_request
from controlplane.edge.openai_schema import (
    LONE_SURROGATE,
    ChatCompletionRequest,
    CompletionRequest,
)
from controlplane.errors import ContextTooLong, MalformedRequest, UnknownModel
from controlplane.tokenizing import TemplateRefused, Tokenizer
from controlplane.wire import Sampling

RequestKind: TypeAlias = Literal["chat", "completion"]

#: OpenAI's default for completions.
COMPLETION_OUTPUT_TOKENS: Final = 16
#: OpenAI has no default for chat but the context; a runaway answer would hold a slot for minutes.
CHAT_OUTPUT_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a router knows of a model it serves."""

    name: str
    tokenizer: Tokenizer
    #: Tokens of one hashed block, > 0.
    block_tokens: int
    #: Prompt and output together, >= 2.
    context_tokens_max: int
    #: From `scope_of`: who may share KV.
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A request that can be served; its repr has no word of the prompt."""

    kind: RequestKind
    model: str
    #: The whole prompt, at least one token.
    tokens: TokenIds = field(repr=False)
    #: Of all tokens but the last: prefill covers those, decode computes the last.
    hashes: tuple[BlockHash, ...] = field(repr=False)
    sampling: Sampling = field(repr=False)
    is_stream: bool
    include_usage: bool
    user: str | None = field(repr=False)
    #: SHA-256 of endpoint, model, prompt and sampling: equal for equal questions.
    digest: str


def parse_request(
    kind: RequestKind, body: bytes, models: Mapping[str, ModelFacts]
) -> ParsedRequest:
    """
    Check, tokenize and hash a request. Pure, so large bodies may go to a thread.

    Args:
        kind: By the endpoint it came to.
        body: As it was received.
        models: The models served now, by name.

    Raises:
        MalformedRequest: Not what the endpoint takes; says which field and why.
        UnsupportedParameter: A parameter that this service does not have.
        UnknownModel: Not one of `models`.
        ContextTooLong: Prompt and output do not fit the model's context.
    """
    fields = parse_object(body)
    request: ChatCompletionRequest | CompletionRequest
    if kind == "chat":
        request = chat = chat_request(fields)
        facts = _facts(request.model, models)
        tokens = _chat_tokens(chat, facts)
        output_tokens = _chat_output_tokens(chat, tokens, facts)
    else:
        request = completion = completion_request(fields)
        facts = _facts(request.model, models)
        tokens = _prompt_tokens(completion, facts)
        output_tokens = _fitting(
            "max_tokens", completion.max_tokens, COMPLETION_OUTPUT_TOKENS, len(tokens), facts
        )
    sampling = Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        output_tokens_max=output_tokens,
        stop=request.stops,
    )
    return ParsedRequest(
        kind=kind,
        model=facts.name,
        tokens=tokens,
        hashes=block_hashes(
            tokens.head(len(tokens) - 1), block_tokens=facts.block_tokens, scope=facts.scope
        ),
        sampling=sampling,
        is_stream=request.stream,
        include_usage=request.includes_usage,
        user=request.user,
        digest=_digest(kind, facts.name, tokens, sampling),
    )


def _digest(kind: RequestKind, model: str, tokens: TokenIds, sampling: Sampling) -> str:
    head = f"{kind}:{len(model)}:{model}:{tokens.width_bytes}:{len(tokens)}:"
    digest = sha256(head.encode())
    digest.update(tokens.data)
    digest.update(sampling.model_dump_json().encode())
    return digest.hexdigest()


def _facts(name: str, models: Mapping[str, ModelFacts]) -> ModelFacts:
    facts = models.get(name)
    if facts is None:
        served = ", ".join(sorted(models)) or "none at this moment"
        raise UnknownModel(f"model: no such model here; served: {served}", param="model")
    return facts


def _chat_tokens(request: ChatCompletionRequest, facts: ModelFacts) -> TokenIds:
    messages = [(message.role, message.text) for message in request.messages]
    try:
        tokens = facts.tokenizer.encode_chat(messages)
    except UnicodeEncodeError as error:
        raise _surrogate(messages) from error
    except TemplateRefused as error:
        raise MalformedRequest(f"messages: {error}", param="messages") from error
    _check_prompt(len(tokens), "messages", facts)
    return tokens


def _surrogate(messages: Sequence[tuple[str, str]]) -> MalformedRequest:
    """The complaint about the first message that the tokenizer could not encode."""
    number = next(number for number, (_, text) in enumerate(messages) if not _is_utf8(text))
    return _surrogate_in(f"messages[{number}].content")


def _is_utf8(text: str) -> bool:
    return text == text.encode("utf-8", "replace").decode("utf-8")


def _surrogate_in(path: str) -> MalformedRequest:
    return MalformedRequest(f"{path}: {LONE_SURROGATE}", param=path)


def _prompt_tokens(request: CompletionRequest, facts: ModelFacts) -> TokenIds:
    prompt = request.prompt
    if isinstance(prompt, str):
        try:
            tokens = facts.tokenizer.encode_text(prompt)
        except UnicodeEncodeError as error:
            raise _surrogate_in("prompt") from error
        _check_prompt(len(tokens), "prompt", facts)
        return tokens
    _check_prompt(len(prompt), "prompt", facts)
    return _packed(prompt, facts.tokenizer)


def _packed(ids: list[object], tokenizer: Tokenizer) -> TokenIds:
    """Ids of a prompt, each known to the tokenizer; three passes in C instead of one in Python."""
    # Packing would take true for 1, hence the exact type; it overflows at negative ids.
    if set(map(type, ids)) == {int}:
        integers = cast("list[int]", ids)
        if max(integers) < tokenizer.vocabulary_size:
            with suppress(OverflowError):
                return TokenIds.from_ints(integers, tokenizer.width_bytes)
    vocabulary = range(tokenizer.vocabulary_size)
    bad = next(
        number for number, item in enumerate(ids) if type(item) is not int or item not in vocabulary
    )
    raise MalformedRequest(
        f"prompt[{bad}]: expected a token id, an integer from 0 to {vocabulary[-1]}",
        param="prompt",
    )


def _check_prompt(tokens: int, param: str, facts: ModelFacts) -> None:
    allowed = facts.context_tokens_max - 1
    if tokens > allowed:
        raise ContextTooLong(
            f"{param}: the prompt has {tokens} tokens, and {facts.name} takes at most {allowed}: "
            f"its context of {facts.context_tokens_max} holds prompt and output",
            param=param,
        )


def _chat_output_tokens(request: ChatCompletionRequest, tokens: TokenIds, facts: ModelFacts) -> int:
    if request.max_completion_tokens is not None:
        param, asked = "max_completion_tokens", request.max_completion_tokens
        return _fitting(param, asked, CHAT_OUTPUT_TOKENS, len(tokens), facts)
    return _fitting("max_tokens", request.max_tokens, CHAT_OUTPUT_TOKENS, len(tokens), facts)


def _fitting(
    param: str, asked: int | None, default: int, prompt_tokens: int, facts: ModelFacts
) -> int:
    """Output tokens a request may have; a default shrinks to what fits, a wish does not."""
    room = facts.context_tokens_max - prompt_tokens
    if asked is None:
        return min(default, room)
    if asked > room:
        raise ContextTooLong(
            f"{param}: {asked} tokens do not fit; after a prompt of {prompt_tokens} tokens the "
            f"context of {facts.context_tokens_max} has room for {room}",
            param=param,
        )
    return asked
