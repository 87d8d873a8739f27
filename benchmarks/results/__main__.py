"""`python -m benchmarks.results`: runs every experiment and writes docs/results.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import click

from benchmarks.results import link_steps, matrix, saturation, slow_link, trouble

Section: TypeAlias = tuple[str, str, Callable[[], str]]


@click.command()
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the page there."
)
@click.option(
    "--traces", type=click.Path(file_okay=False, path_type=Path), envvar="PRFAAS_TRACES",
    default=Path("traces"), show_default=True, show_envvar=True, help="Their folder.",
)  # fmt: skip
@click.option("--only", multiple=True, help="Sections by name; all of them otherwise.")
@click.option("--quick", is_flag=True, help="A tenth of the requests: does it run at all.")
def main(*, out: Path | None, traces: Path, only: tuple[str, ...], quick: bool) -> None:
    """Show what policies make of the paper's case study, of traces, and of trouble."""
    part = 10 if quick else 1
    sections = _sections(traces, part)
    unknown = set(only) - {name for name, _, _ in sections}
    if unknown:
        raise click.BadParameter(f"unknown sections: {', '.join(sorted(unknown))}")
    text = [_HEAD.format(quick=" --quick" if quick else "")]
    for name, title, run in sections:
        if only and name not in only:
            continue
        began_s = time.perf_counter()
        text.append(f"## {title}\n\n`python -m benchmarks.results --only {name}`\n\n{run()}")
        print(f"{name}: {time.perf_counter() - began_s:.0f} s", file=sys.stderr, flush=True)
    page = "\n\n".join(text) + "\n"
    print(page)
    if out is not None:
        out.write_text(page, encoding="utf-8")


def _sections(traces: Path, part: int) -> tuple[Section, ...]:
    return (
        (
            "saturation",
            "The paper's case study",
            lambda: saturation.page(saturation.measure(requests=1200 // part)),
        ),
        (
            "link-steps",
            "A link that changes",
            lambda: link_steps.page(link_steps.measure(phase_s=600.0 / part)),
        ),
        (
            "matrix",
            "Real traces, loads and links",
            lambda: matrix.page(matrix.measure(traces, requests=500 // part)),
        ),
        (
            "slow-link",
            "A pool behind a slow link",
            lambda: slow_link.page(slow_link.measure(requests=1000 // part)),
        ),
        ("trouble", "Trouble", lambda: trouble.page(trouble.measure())),
    )


_HEAD: Final = """\
# Results

Written by `make results{quick}`; every figure is from `prfaas replay`'s emulation
([replay.md](replay.md)), seed 0, and comes out the same on every machine. Nothing here is measured on
GPUs. The fleet is the paper's case study ([case_study.toml](../benchmarks/results/case_study.toml)):
4 instances of H200 that prefill, 8 of H20 that do both, a link of 100 Gbit/s with 10 ms."""


if __name__ == "__main__":
    main()
