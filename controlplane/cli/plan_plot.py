"""Draws what `prfaas plan` answers, with matplotlib, which comes with the extra `plot`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from controlplane.cli.plan_answer import Answer, scaled_links
from controlplane.domain.throughput.frozen import evaluate
from controlplane.domain.throughput.solution import Solution
from controlplane.domain.throughput.solve import solve

#: Links as a part of what they are: from next to nothing to four times as wide.
_FACTORS: Final = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35, 0.6, 1.0, 2.0, 4.0)
_SIZE_INCHES: Final = (13.0, 4.4)
_DPI: Final = 130


class PlotError(Exception):
    """The plot could not be drawn; says what to do."""


def draw(found: Answer, path: Path) -> None:
    """
    Draw three panels: who prefills which lengths, use at saturation, throughput by width of links.

    Raises:
        PlotError: matplotlib is not installed, or the file cannot be written.
    """
    figure = empty_figure()
    axes = figure.subplots(1, 3)
    _draw_bands(axes[0], found.solution)
    _draw_use(axes[1], found.solution)
    _draw_links(axes[2], found)
    figure.suptitle(
        f"{found.question.name}: {found.solution.throughput_per_s:.3g} requests/s, "
        f"{found.at_saturation.per_million_tokens:.3g} {found.question.currency} "
        f"per million tokens"
    )
    save_figure(figure, path)


def empty_figure() -> Any:  # noqa: ANN401 - matplotlib is not always there to be named
    """
    A figure that draws without a screen.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise PlotError(
            "--plot needs matplotlib, which is not installed: pip install 'prfaas[plot]'"
        ) from error
    # A figure without pyplot keeps no global state and needs no back end that can open windows.
    return figures.Figure(figsize=_SIZE_INCHES, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:  # noqa: ANN401 - as above
    """
    Write it as what the path's ending says.

    Raises:
        PlotError: The file cannot be written.
    """
    try:
        figure.savefig(path, dpi=_DPI)
    except OSError as error:
        raise PlotError(f"cannot write {path}: {error}") from error


def _draw_bands(axes: Any, solution: Solution) -> None:  # noqa: ANN401
    """A bar along the lengths for each serving datacenter, by who prefills them."""
    sites = sorted({site for bands in solution.bands.values() for b in bands for site in b.parts})
    colours = {site: f"C{number % 10}" for number, site in enumerate(sites)}
    shortest = 1.0
    for row, bands in enumerate(solution.bands.values()):
        for band in bands:
            begin, foot = max(band.above, shortest), row - 0.4
            for site, part in band.parts.items():
                axes.broken_barh(
                    [(begin, band.up_to - begin)], (foot, 0.8 * part), color=colours[site]
                )
                foot += 0.8 * part
    axes.set_yticks(range(len(solution.bands)), [*solution.bands])
    axes.set_xscale("log")
    axes.set_xlim(left=100)
    axes.set_xlabel("uncached tokens")
    axes.set_title("prefilled in")
    for site in sites:
        axes.plot([], [], linewidth=6, color=colours[site], label=site)
    axes.legend(loc="lower left", fontsize="small")


def _draw_use(axes: Any, solution: Solution) -> None:  # noqa: ANN401
    names = [*solution.utilisation]
    axes.barh(range(len(names)), [100 * solution.utilisation[name] for name in names])
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.set_xlabel("% used at saturation")


def _draw_links(axes: Any, found: Answer) -> None:  # noqa: ANN401
    """Throughput with narrower and wider links: solved anew, and with this plan as it stands."""
    fleet, traffic = found.question.fleet, found.question.traffic
    anew = [
        solve(
            scaled_links(fleet, factor),
            traffic,
            form=found.solution.form,
            lend_max=found.lend_max,
        ).throughput_per_s
        for factor in _FACTORS
    ]
    stands = [
        evaluate(
            scaled_links(fleet, factor),
            traffic,
            threshold_tokens=found.solution.threshold_tokens,
            roles=found.solution.roles,
            form=found.solution.form,
        ).throughput_per_s
        for factor in _FACTORS
    ]
    axes.plot(_FACTORS, anew, marker="o", label="thresholds and roles solved anew")
    axes.plot(_FACTORS, stands, marker="s", linestyle="--", label="this plan as it stands")
    axes.axhline(traffic.arrival_per_s, color="grey", linewidth=0.8, label="arrivals")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("width of all links, 1 = as they are")
    axes.set_ylabel("requests/s")
    axes.legend(fontsize="small")
