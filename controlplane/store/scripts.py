"""The Lua scripts, by name; their files say what they take, return and cost."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Final, TypeAlias

Argument: TypeAlias = str | bytes | int | float
Command: TypeAlias = tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest the server knows it by."""

    text: str
    sha: str

    def by_digest(self, keys: list[str], arguments: list[Argument]) -> Command:
        """The command that runs it if the server has it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)

    def in_full(self, command: Command) -> Command:
        """The same call with the whole text, after which the server has it."""
        return ("EVAL", self.text, *command[2:])


def _load(name: str) -> Script:
    folder = files(__package__).joinpath("scripts")
    prelude = folder.joinpath("prelude.lua").read_text(encoding="utf-8")
    text = f"{prelude}\n{folder.joinpath(f'{name}.lua').read_text(encoding='utf-8')}"
    # The digest is Redis's name for a script and protects nothing.
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


HEARTBEAT: Final = _load("heartbeat")
DEREGISTER: Final = _load("deregister")
RESERVE: Final = _load("reserve")
RELEASE: Final = _load("release")
FINISH: Final = _load("finish")
LINK_BUDGET: Final = _load("link_budget")
PUT_SEGMENT: Final = _load("put_segment")
DROP_SEGMENT: Final = _load("drop_segment")
CLAIM_KEY: Final = _load("claim_key")
RELEASE_KEY: Final = _load("release_key")
BLAME: Final = _load("blame")
PUBLISH: Final = _load("publish")
DOCUMENT: Final = _load("document")
LEAD: Final = _load("lead")
RESIGN: Final = _load("resign")

BY_SHA: Final = {
    script.sha: script
    for script in (
        HEARTBEAT,
        DEREGISTER,
        RESERVE,
        RELEASE,
        FINISH,
        LINK_BUDGET,
        PUT_SEGMENT,
        DROP_SEGMENT,
        CLAIM_KEY,
        RELEASE_KEY,
        BLAME,
        PUBLISH,
        DOCUMENT,
        LEAD,
        RESIGN,
    )
}
