"""What is wrong with an answer, by comparing it with the right one."""

from __future__ import annotations

from chaos.history import Attempt
from chaos.pool import Item


def is_right(attempt: Attempt, item: Item) -> bool:
    """A whole answer is the right one: text, length in tokens, and why it ended."""
    return (
        attempt.text == item.text
        and attempt.finish_reason == item.finish_reason
        and attempt.output_tokens == item.output_tokens
    )


def is_beginning(attempt: Attempt, item: Item) -> bool:
    """What came of an answer that was cut off is the beginning of the right one."""
    return item.text.startswith(attempt.text)


def has_repeat(text: str, right: str) -> bool:
    """A part of the right text came twice in a row."""
    return any(
        text[:at] + text[at + size :] == right and text[at - size : at] == text[at : at + size]
        for size in (len(text) - len(right),)
        if size > 0
        for at in range(size, len(text) - size + 1)
    )


def has_gap(text: str, right: str) -> bool:
    """A part in the middle of the right text is missing."""
    size = len(right) - len(text)
    return size > 0 and any(
        right[:at] + right[at + size :] == text for at in range(len(text) + 1) if at < len(text)
    )
