"""What `prfaas profile` writes and prints."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from controlplane.profilefile import ProfileFile, load_profile, shipped_profiles

if TYPE_CHECKING:
    from workers.profiling.measure import Measured

_MIB: Final = 1 << 20


def profile_text(profile: ProfileFile) -> str:
    """The profile as TOML, as `load_profile` reads it."""
    fields = profile.model_dump(mode="json", exclude_defaults=True)
    lines = [
        f"{key} = {_value(value)}" for key, value in fields.items() if not isinstance(value, dict)
    ]
    for key, section in fields.items():
        if isinstance(section, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_value(v)}" for name, v in section.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:  # noqa: ANN401 - of JSON
    """Numbers, lists and plain text are written alike in JSON and TOML."""
    return json.dumps(value)


def print_profile(
    profile: ProfileFile, measured: Measured, tolerance: float, console: Console
) -> None:
    """What was measured, for people."""
    table = Table("prompt tokens", "prefill", "tokens/s", "runs", box=SIMPLE_HEAD)
    for tokens, times in measured.prefill_s.items():
        time_s = median(times)
        table.add_row(f"{tokens:,}", f"{time_s:.4g} s", f"{tokens / time_s:,.0f}", f"{len(times)}")
    console.print(table)
    table = Table("batch", "step", "tokens/s", "runs", box=SIMPLE_HEAD)
    for batch, times in measured.step_s.items():
        step_s = median(times)
        table.add_row(
            f"{batch}", f"{step_s * 1000:.4g} ms", f"{batch / step_s:,.0f}", f"{len(times)}"
        )
    console.print(table)
    assert profile.decode is not None, "decode was measured"
    assert profile.measurement is not None, "it was measured"
    objective_s = profile.measurement.tpot_s
    if profile.decode.step_ms > objective_s * 1000:
        console.print(f"Even one stream is slower than the objective of {objective_s * 1000:g} ms.")
    else:
        console.print(
            f"{profile.decode.slots:g} streams keep the objective of {objective_s * 1000:g} ms."
        )
    if profile.model is None:
        console.print("How large KV is, is not known: say --config or --decode-url.")
    else:
        counted = "counted in transfers" if measured.kv_bytes else "by the configuration"
        console.print(
            f"KV: {profile.model.kv_bytes_per_token:,.0f} bytes a token and "
            f"{profile.model.kv_state_bytes / _MIB:,.1f} MiB, {counted}."
        )
    if unsettled := measured.unsettled(tolerance):
        console.print(
            f"Not known to {tolerance:.0%} after all runs: {', '.join(unsettled)}. Something else runs on "
            "this machine; try again, or with more --runs-max."
        )


def differences(profile: ProfileFile, former: ProfileFile) -> Table:
    """A profile against a former one, where both were measured."""
    table = Table("", "now", former.name, "difference", box=SIMPLE_HEAD)
    if profile.prefill is not None and former.prefill is not None:
        times = former.prefill.profile()
        for tokens, now_s in profile.prefill.table:
            then_s = times.prefill_s(tokens)
            table.add_row(
                f"prefill {tokens:,.0f}",
                f"{now_s:.4g} s",
                f"{then_s:.4g} s",
                f"{now_s / then_s - 1:+.1%}",
            )
    if profile.decode is not None and former.decode is not None:
        known = dict(former.decode.table)
        for batch, now_ms in profile.decode.table:
            if batch in known:
                table.add_row(
                    f"batch {batch:g}",
                    f"{now_ms:.4g} ms",
                    f"{known[batch]:.4g} ms",
                    f"{now_ms / known[batch] - 1:+.1%}",
                )
    return table


def shipped_table() -> Table:
    """The profiles that come with the package."""
    table = Table("name", "source", "", box=SIMPLE_HEAD)
    for name in shipped_profiles():
        profile = load_profile(name, beside=Path())
        table.add_row(name, profile.source, profile.note)
    return table
