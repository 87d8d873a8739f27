"""From tokens to text that may be sent: stop strings, one character never sent twice."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.tokenizing import Detokenizer


class TextStream:
    """
    Turns output tokens into text that may be sent.

    Holds back an incomplete character, and any tail that could be the beginning of a stop string;
    both are bounded by their own length.
    """

    def __init__(self, stop: Sequence[str], detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(stop)
        self._held = ""
        #: A stop string has come; nothing more will be sent.
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Text that this token makes certain; may be empty."""
        return self._take(self._detokenizer.push(token))

    def finish(self) -> str:
        """The held text, when the output ends without a stop string."""
        text = self._take(self._detokenizer.finish())
        if not self.is_stopped:
            text, self._held = text + self._held, ""
        return text

    def _take(self, text: str) -> str:
        if self.is_stopped:
            return ""
        self._held += text
        if not self._stop:
            ready, self._held = self._held, ""
            return ready
        found = [at for at in (self._held.find(word) for word in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max(_overlap(self._held, word) for word in self._stop)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that begins `word`, shorter than the word itself."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
