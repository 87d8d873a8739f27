"""Policies of other packages: built, installed, found by their names, and followed by a router."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import a_beat
from router_builders import MemoryRouter

from controlplane.router.records import replay
from policies.registry import PolicyError, load_policy, policy_names

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "policy_plugin"
PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8").partition("## Add a policy")[2]


def code(language: str) -> list[str]:
    """Blocks of the page's steps."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the steps of the page were followed up to the commands."""
    folder = tmp_path_factory.mktemp("steps")
    package = folder / "prfaas-fastest"
    package.mkdir()
    (package / "pyproject.toml").write_text(code("toml")[0], encoding="utf-8")
    (package / "prfaas_fastest.py").write_text(code("python")[0], encoding="utf-8")
    (package / "test_fastest.py").write_text(code("python")[1], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, written: Path) -> Iterator[Path]:
    """Both packages, installed as their users would, beside what is there, without a network."""
    target = tmp_path_factory.mktemp("site-packages")
    (install, _) = (line.split() for line in code("sh")[0].splitlines())
    assert install == ["pip", "install", "./prfaas-fastest"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    quiet = ["--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", *install, str(PACKAGE), *offline, *quiet]
    subprocess.run(command, check=True, cwd=written, timeout=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(target)
        yield target
        for module in ("prfaas_maintenance", "prfaas_fastest"):
            sys.modules.pop(module, None)


@pytest.mark.usefixtures("installed")
def test_it_is_found_by_its_name() -> None:
    """Beside the built-in ones, and with its parameters checked."""
    assert "maintenance" in policy_names()
    with pytest.raises(PolicyError, match="its parameters are: closed, affinity_weight"):
        load_policy("maintenance", {"close": ["east"]})


@pytest.mark.usefixtures("installed")
async def test_a_router_follows_it() -> None:
    """A request avoids the datacenter that it closes, and the record replays by name."""
    parameters = {"closed": ["east"]}
    router = MemoryRouter(policy=load_policy("maintenance", parameters))
    router.services.policy_parameters = parameters
    await router.register(a_beat("east/p1"), a_beat("west/p1"), a_beat("west/d1"))

    await router.serve()

    (attempt,) = (await router.record()).attempts
    placement = attempt.decision.placement
    assert placement is not None
    assert placement.prefill_worker == "west/p1"
    assert attempt.policy == "maintenance"
    assert replay(attempt) == attempt.decision


@pytest.mark.usefixtures("installed")
async def test_a_router_follows_the_policy_of_the_page() -> None:
    """Named and configured as the page has it."""
    named = tomllib.loads(code("toml")[1])["router"]
    router = MemoryRouter(policy=load_policy(named["policy"], named["policy_parameters"]))
    router.services.policy_parameters = named["policy_parameters"]
    await router.register(a_beat("east/p1"), a_beat("west/p1"), a_beat("west/d1"))

    await router.serve()

    (attempt,) = (await router.record()).attempts
    assert attempt.policy == "fastest"
    assert attempt.decision.explanation == "leaving west saves 0.000 s, 0.200 s are asked for"
    assert replay(attempt) == attempt.decision


def test_their_own_tests_pass(installed: Path, written: Path) -> None:
    """With what was installed: the example's, and the one of the page with its own command."""
    (_, command) = (line.split() for line in code("sh")[0].splitlines())
    assert command == ["pytest", "prfaas-fastest"]
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-o", "pythonpath="]

    done = subprocess.run(
        [sys.executable, "-m", *command, str(PACKAGE / "tests"), *options],
        cwd=written,
        env={"PYTHONPATH": str(installed), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n6 passed" in done.stdout
