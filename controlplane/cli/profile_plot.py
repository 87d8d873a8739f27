"""Draws a measured profile, with matplotlib, which comes with the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli.plan_plot import empty_figure, save_figure
from controlplane.profilefile import ProfileFile

if TYPE_CHECKING:
    from workers.profiling.measure import Measured

_MIB = 1 << 20


def draw_profile(profile: ProfileFile, measured: Measured, path: Path) -> None:
    """
    Draw three panels: prefill time by length, decode step by batch, bytes of KV by length.

    Raises:
        PlotError: matplotlib is not installed, or the file cannot be written.
    """
    figure = empty_figure()
    axes = figure.subplots(1, 3)
    _draw_prefill(axes[0], profile, measured)
    _draw_decode(axes[1], profile, measured)
    _draw_kv(axes[2], profile, measured)
    figure.suptitle(profile.name)
    save_figure(figure, path)


def _draw_prefill(axes: Any, profile: ProfileFile, measured: Measured) -> None:  # noqa: ANN401 - matplotlib is not always there to be named
    _scatter(axes, measured.prefill_s, 1.0)
    if profile.prefill is not None:
        axes.plot(*zip(*profile.prefill.table, strict=True), color="C0", label="medians")
    if (fitted := profile.quadratic()) is not None:
        tokens = [*measured.prefill_s]
        axes.plot(
            tokens, [*map(fitted.prefill_s, tokens)], "--", color="C1", label="as agents say it"
        )
    axes.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="prefill, s")
    # At the lengths themselves: labels of a logarithmic axis would lie over each other.
    axes.minorticks_off()
    axes.set_xticks([*measured.prefill_s], [f"{tokens:,}" for tokens in measured.prefill_s])
    axes.tick_params("x", rotation=45)
    axes.legend(fontsize="small")


def _draw_decode(axes: Any, profile: ProfileFile, measured: Measured) -> None:  # noqa: ANN401
    _scatter(axes, measured.step_s, 1000.0)
    if profile.decode is not None:
        axes.plot(*zip(*profile.decode.table, strict=True), color="C0", label="medians")
        axes.axvline(profile.decode.slots, color="grey", linewidth=0.8)
    if profile.measurement is not None:
        axes.axhline(
            profile.measurement.tpot_s * 1000, color="C3", linewidth=0.8, label="objective"
        )
    axes.set(xlabel="streams side by side", ylabel="step, ms", ylim=(0, None))
    axes.legend(fontsize="small")


def _draw_kv(axes: Any, profile: ProfileFile, measured: Measured) -> None:  # noqa: ANN401
    if measured.kv_bytes:
        lengths, sizes = zip(*measured.kv_bytes, strict=True)
        axes.plot(lengths, [size / _MIB for size in sizes], "o", label="counted")
    if profile.model is not None:
        sizes_of = profile.model.kv
        tokens = [0, *measured.prefill_s]
        axes.plot(tokens, [sizes_of.segment_bytes(count) / _MIB for count in tokens], label="line")
        axes.legend(fontsize="small")
    axes.set(xlabel="prompt tokens", ylabel="KV, MiB", ylim=(0, None))


def _scatter(axes: Any, runs: Any, factor: float) -> None:  # noqa: ANN401
    points = [(point, value * factor) for point, values in runs.items() for value in values]
    axes.plot(*zip(*points, strict=True), ".", color="grey", markersize=3, label="runs")
