"""The version before this one, from the repository's history, beside this one on the same machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Final, Literal, TypeAlias

from chaos.processes import Command
from controlplane.config import FleetConfig

Version: TypeAlias = Literal["old", "new"]

#: Stands for the version before this one as long as no version is tagged: the last commit whose
#: routers and workers had one policy, no planner and no roles that change.
_UNTAGGED: Final = "864936f"
#: Parameters of the policy that came later: an older version refuses what it does not know.
_LATER_PARAMETERS: Final = frozenset({"follows_plan"})
_ROOT: Final = Path(__file__).parents[2]
_WITHIN_S: Final = 60.0


class NoHistoryError(Exception):
    """This is no checkout with its history: nobody knows what came before."""


@cache
def previous_commit() -> str:
    """
    The newest tag before this commit, or what stands for it.

    Raises:
        NoHistoryError: It is not here: no repository, or one without its past.
    """
    for name in (_git("describe", "--tags", "--abbrev=0", "HEAD^"), _UNTAGGED):
        if name and (commit := _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")):
            return commit
    raise NoHistoryError(
        f"no tag and no commit {_UNTAGGED} in {_ROOT}: the versions cannot be mixed without the "
        "repository's history (a shallow clone has none; git fetch --unshallow)"
    )


def has_previous() -> bool:
    """Whether there is a version to mix with; says so loudly if not."""
    try:
        previous_commit()
    except NoHistoryError as error:
        print(f"SKIPPED mixed versions: {error}", file=sys.stderr, flush=True)
        return False
    return True


def unpack_previous(directory: Path) -> Path:
    """
    Put the previous version's files there, if they are not yet; the directory.

    Raises:
        NoHistoryError: There is none.
        RuntimeError: What was put there is not what a process started with it would run.
    """
    if directory.exists():
        return directory
    commit = previous_commit()
    packed = _run("git", "-C", str(_ROOT), "archive", commit)
    with tarfile.open(fileobj=BytesIO(packed)) as files:
        files.extractall(directory, filter="data")
    question = "import controlplane, workers; print(controlplane.__file__, workers.__file__)"
    said = _run(sys.executable, "-c", question, environment=_environment(directory)).decode()
    if not all(one.startswith(f"{directory}/") for one in said.split()):
        raise RuntimeError(f"the previous version would run {said}, not what is in {directory}")
    return directory


def as_previous(command: Command, directory: Path) -> Command:
    """
    The same process as the previous version has it.

    Its configuration says what differs from the defaults and no more: a field that came later has
    a default, and the file of an older version does not know it. A threshold that does not follow
    a plan is all it has.
    """
    fleet = FleetConfig.model_validate_json(command.first_line)
    parameters = {
        name: value
        for name, value in fleet.router.policy_parameters.items()
        if name not in _LATER_PARAMETERS
    }
    router = fleet.router.model_copy(update={"policy_parameters": parameters})
    fleet = fleet.model_copy(update={"router": router})
    return replace(
        command,
        first_line=fleet.model_dump_json(exclude_defaults=True).encode() + b"\n",
        environment={**command.environment, **_environment(directory)},
    )


def _environment(directory: Path) -> dict[str, str]:
    # Before what is installed; and without the folder it is started in, which has the new version.
    path = os.pathsep.join((str(directory), str(directory / "tests")))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _git(*arguments: str) -> str:
    """What git says; empty if it fails."""
    try:
        return _run("git", "-C", str(_ROOT), *arguments).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _run(*argv: str, environment: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(
        argv,
        check=True,
        timeout=_WITHIN_S,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    return done.stdout
