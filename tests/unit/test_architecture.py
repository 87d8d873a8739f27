"""Rules of the house that no linter has a word for, checked on the source itself."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from controlplane.observe.logs import EVENTS, FIELDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("controlplane", "policies", "workers")
LINES_MAX = 500

#: Where a bug may be caught: the outermost edges, each of which logs it with its story.
EDGES = {
    "controlplane/edge/answers.py",
    "controlplane/planner/planner.py",
    "controlplane/router/dispatcher.py",
    "workers/server.py",
}
#: The edge to plug-ins of other packages, whose failures are counted and named in the decision.
FOREIGN = {"policies/plugins.py"}
#: Where anything is caught to be handed to whoever waits for it.
HANDED_ON = {
    "workers/engines/local/compute.py": "future.set_exception(error)",
    "controlplane/router/asking.py": (
        "raise PolicyFault(_said(f'it raised {type(error).__name__}: {error}')) from error"
    ),
    # The library behind it raises bare exceptions.
    "controlplane/tokenizing/by_files.py": (
        "raise ConfigError(f'model.tokenizer: {path} cannot be read: {error}') from error"
    ),
}
#: Where anything is caught to clean up, and raised again.
CLEAN_UPS = {"controlplane/cli/supervisor.py", "controlplane/store/redis_store.py"}

#: The only doors to what a library does.
DOORS = {
    "redis": ("controlplane/store/",),
    "numpy": ("workers/engines/",),
    "structlog": ("controlplane/observe/",),
    "uvloop": ("controlplane/cli/",),
    "click": ("controlplane/cli/",),
    "rich": ("controlplane/cli/",),
    "prometheus_client": (
        "controlplane/observe/",
        "controlplane/admin/",
        "workers/metrics.py",
        "workers/server.py",
    ),
    "xxhash": ("workers/kv/",),
}

#: Would make a decision depend on more than its arguments.
IMPURE = {
    "asyncio",
    "datetime",
    "logging",
    "os",
    "random",
    "secrets",
    "socket",
    "threading",
    "time",
}
#: Would run code that data names.
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}

#: Wall-clock time is for people: when a request was accepted, when the policy was changed, their
#: pictures, and lines of the log. And for prices, which change with the time of the day.
WALL_CLOCKS = {
    "controlplane/router/known_links.py",
    "controlplane/router/view.py",
    "controlplane/admin/policies.py",
    "controlplane/edge/server.py",
    "controlplane/admin/text.py",
    "controlplane/observe/logs.py",
    # What a template asks for is the day of the model's user.
    "controlplane/tokenizing/chat_template.py",
}


@dataclass(frozen=True)
class Module:
    """One source file."""

    path: str
    text: str
    nodes: tuple[ast.AST, ...]
    #: Full names of everything it imports, wherever in it.
    imports: frozenset[str]


@cache
def modules() -> tuple[Module, ...]:
    """All source files of the distribution."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            nodes = tuple(ast.walk(ast.parse(text)))
            where = path.relative_to(ROOT).as_posix()
            found.append(Module(where, text, nodes, frozenset(imported(nodes))))
    return tuple(found)


def imported(nodes: tuple[ast.AST, ...]) -> Iterator[str]:
    """Names after `import` and `from`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def under(*prefixes: str) -> Iterator[Module]:
    """Modules whose paths begin like this."""
    return (module for module in modules() if module.path.startswith(prefixes))


def is_of(name: str, package: str) -> bool:
    """Whether a module is a package or in it."""
    return name == package or name.startswith(package + ".")


def test_there_is_something_to_check() -> None:
    """Or all rules below would hold for a wrong path."""
    assert len(modules()) > 100


def test_every_module_is_short_enough_to_be_read_at_once() -> None:
    """What is longer has two subjects."""
    long = {module.path: module.text.count("\n") for module in modules()}

    assert {path: lines for path, lines in long.items() if lines >= LINES_MAX} == {}


def test_the_domain_is_standard_library_and_pure() -> None:
    """No clock, no chance, no waiting, nobody else's code: so that it can be called from a REPL."""
    for module in under("controlplane/domain/"):
        for name in module.imports:
            top = name.partition(".")[0]
            is_own = is_of(name, "controlplane.domain")
            assert is_own or top in sys.stdlib_module_names, f"{module.path} imports {name}"
            assert top not in IMPURE, f"{module.path} imports {name}"
        waits = [node for node in module.nodes if isinstance(node, ast.AsyncFunctionDef)]
        assert not waits, f"{module.path} has a coroutine"


def test_policies_wait_for_nothing() -> None:
    """A policy is a function of what it is given; chance comes as an argument."""
    for module in under("policies/"):
        for node in module.nodes:
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), module.path
        for name in module.imports:
            assert name.partition(".")[0] not in IMPURE - {"random"}, f"{module.path}: {name}"


@pytest.mark.parametrize(("library", "doors"), DOORS.items(), ids=DOORS)
def test_each_library_has_its_door(library: str, doors: tuple[str, ...]) -> None:
    """One way in and out, or replacing it would touch everything."""
    for module in modules():
        if any(is_of(name, library) for name in module.imports):
            assert module.path.startswith(doors), f"{module.path} imports {library}"


def test_composition_roots_are_imported_by_commands_alone() -> None:
    """The files that know every class are known by nobody else."""
    for module in modules():
        if module.path.startswith("controlplane/cli/"):
            continue
        for root in ("controlplane.app", "controlplane.cli", "workers.app"):
            names = [name for name in module.imports if is_of(name, root)]
            assert not names, f"{module.path} imports {names}"


def test_only_an_engine_knows_an_engine() -> None:
    """All others speak its contract; the composition root alone makes one."""
    for module in modules():
        if module.path.startswith("workers/engines/") or module.path == "workers/app.py":
            continue
        names = [name for name in module.imports if is_of(name, "workers.engines")]
        assert not names, f"{module.path} imports {names}"


def test_bugs_are_caught_at_the_edges_alone() -> None:
    """Anywhere else a broad `except` hides one."""
    for module in modules():
        for node in module.nodes:
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "" if node.type is None else ast.unparse(node.type)
            is_broad = node.type is None or caught in {"Exception", "BaseException"}
            if not is_broad:
                continue
            where = f"{module.path}:{node.lineno}"
            if module.path in EDGES | FOREIGN:
                assert caught == "Exception", f"{where} swallows a cancellation"
            elif module.path in HANDED_ON:
                assert ast.unparse(node.body[-1]) == HANDED_ON[module.path], f"{where} keeps it"
            else:
                assert module.path in CLEAN_UPS, f"{where} catches everything"
                assert isinstance(node.body[-1], ast.Raise), f"{where} does not raise again"


def test_nothing_runs_code_that_data_names() -> None:
    """No pickle, no eval, no YAML that makes objects."""
    for module in modules():
        tops = {name.partition(".")[0] for name in module.imports}
        assert not tops & UNSAFE_MODULES, module.path
        for node in module.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in UNSAFE_CALLS, f"{module.path}:{node.lineno}"


def test_wall_clock_time_is_for_people() -> None:
    """Durations and deadlines are monotonic, or a clock that is set back breaks them."""
    for module in modules():
        for node in module.nodes:
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {
                "time.time",
                "time.time_ns",
                "datetime.now",
                "datetime.utcnow",
                "datetime.fromtimestamp",
            }:
                assert module.path in WALL_CLOCKS, f"{module.path}:{node.lineno}"


# --- Logs -------------------------------------------------------------------------------------


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call that logs, with where it stands."""
    for module in modules():
        for node in module.nodes:
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func.value) == "_log"
                and node.func.attr != "is_enabled_for"
            ):
                yield f"{module.path}:{node.lineno}", node


def test_loggers_have_one_name() -> None:
    """Or the rules below would not see them."""
    for module in modules():
        if module.path == "controlplane/observe/logs.py":
            continue
        for node in module.nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("get_logger"):
                assert f"_log = {ast.unparse(node)}" in module.text, module.path


def test_every_event_that_is_logged_is_listed() -> None:
    """By a name that stands there as it is, so that it can be searched for."""
    calls = list(log_calls())

    assert len(calls) > 10
    for where, call in calls:
        assert call.args, where
        assert isinstance(call.args[0], ast.Constant), where
        assert call.args[0].value in EVENTS, f"{where}: {call.args[0].value!r}"


def test_every_field_that_is_logged_is_listed() -> None:
    """A field that is not would be dropped in silence."""
    for where, call in log_calls():
        for keyword in call.keywords:
            assert keyword.arg is None or keyword.arg in FIELDS, f"{where}: {keyword.arg}"


def test_bugs_are_logged_where_they_are_caught() -> None:
    """With their story."""
    logged = {where.partition(":")[0] for where, call in log_calls() if is_internal(call)}

    assert logged >= EDGES


def is_internal(call: ast.Call) -> bool:
    """Whether a call logs a bug."""
    return isinstance(call.args[0], ast.Constant) and call.args[0].value == "internal.error"


# --- Tests ------------------------------------------------------------------------------------


def test_tests_use_the_runner_of_production() -> None:
    """Aiohttp's own test server cancels handlers where production would not."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path == Path(__file__):
            continue
        assert "aiohttp.test_utils" not in path.read_text(encoding="utf-8"), path
