"""`python -m benchmarks.wan`: goodput of KV transfers over links of a rate and a round trip, and what they cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.wan.path import Path, a_path, has_namespaces

MEGA, GIGA = 1e6, 1e9


@dataclass(frozen=True, kw_only=True)
class Result:
    """One transfer."""

    bytes: int
    connections: int
    took_s: float
    #: While bytes moved, by the product's own measure.
    goodput_bps: float
    first_byte_s: float
    reader_cpu_s: float
    owner_cpu_s: float

    @property
    def bits_per_s(self) -> float:
        """From the request to the last byte."""
        return self.bytes * 8 / self.took_s


def transfer(
    path: Path, *, mbit_per_s: float, total_bytes: int, connections: int = 0, rtt_s: float = 0.0
) -> Result:
    """One fetch between two new processes."""
    settings = {"mbit_per_s": mbit_per_s, "total_bytes": total_bytes, "host": path.owner_host}
    owner = _start(path.owner, "owner", settings)
    try:
        assert owner.stdout is not None
        location = json.loads(owner.stdout.readline())
        reader = _start(
            path.reader, "reader",
            {
                "mbit_per_s": mbit_per_s,
                "location": location,
                "connections": connections,
                "rtt_s": rtt_s,
            },
        )  # fmt: skip
        said, _ = reader.communicate(timeout=600)
        if reader.returncode:
            raise SystemExit(f"the reader failed: {said}")
        found = json.loads(said)
        rest, _ = owner.communicate("\n", timeout=30)
        return Result(
            bytes=found["bytes"],
            connections=found["connections"],
            took_s=found["took_s"],
            goodput_bps=found["goodput_bps"],
            first_byte_s=found["first_byte_s"],
            reader_cpu_s=found["cpu_s"],
            owner_cpu_s=json.loads(rest)["cpu_s"],
        )
    finally:
        owner.kill()
        owner.wait()


def _start(inside: tuple[str, ...], end: str, settings: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*inside, sys.executable, "-m", "benchmarks.wan.ends", end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    return process


def over_loopback(console: Console, *, total_bytes: int, runs: int) -> None:
    """What a core can receive, without any link."""
    results = [transfer(Path(), mbit_per_s=0, total_bytes=total_bytes) for _ in range(runs)]
    gigabytes = total_bytes / GIGA
    rate = median(one.bytes / one.took_s for one in results) / GIGA
    reader = median(one.reader_cpu_s for one in results) / gigabytes
    owner = median(one.owner_cpu_s for one in results) / gigabytes
    console.print(
        f"loopback, no link: {rate:.2f} GB/s, {1 / reader:.2f} GB/s a core of the reader; CPU seconds a GB: "
        f"{reader:.3f} reader, {owner:.3f} owner"
    )


@click.command()
@click.option("--rates", default="200,1000,5000", show_default=True, help="Mbit/s.")
@click.option("--rtts", default="0,10,40,100", show_default=True, help="Milliseconds.")
@click.option(
    "--connections",
    default="2,0",
    show_default=True,
    help="Of each transfer; 0 as the product does.",
)
@click.option("--seconds", default=8.0, show_default=True, help="Of a transfer at the full rate.")
@click.option("--runs", default=3, show_default=True)
def main(rates: str, rtts: str, connections: str, seconds: float, runs: int) -> None:
    """Print goodput as a part of the link's rate, and processor time for each GB."""
    console = Console()
    over_loopback(console, total_bytes=2 << 30, runs=runs)
    if not has_namespaces():
        console.print("links: skipped, they need root and /dev/net/tun for network namespaces")
        return
    table = Table(
        "Mbit/s", "RTT ms", "connections", "whole", "moving", "first byte ms", "CPU s/GB", "owner",
    )  # fmt: skip
    for mbit_per_s in map(float, rates.split(",")):
        for rtt_ms in map(float, rtts.split(",")):
            with a_path(mbit_per_s * MEGA, rtt_ms / 1000) as path:
                for count in map(int, connections.split(",")):
                    total_bytes = int(mbit_per_s * MEGA / 8 * seconds)
                    results = [
                        transfer(
                            path, mbit_per_s=mbit_per_s, total_bytes=total_bytes, connections=count,
                            rtt_s=rtt_ms / 1000,
                        )
                        for _ in range(runs)
                    ]  # fmt: skip
                    table.add_row(*_row(mbit_per_s, rtt_ms, results))
    console.print(table)
    console.print(
        "whole: from the request to the last byte, as a part of the link's rate; moving: while bytes moved"
    )


def _row(mbit_per_s: float, rtt_ms: float, results: list[Result]) -> list[str]:
    gigabytes, link_bps = results[0].bytes / GIGA, mbit_per_s * MEGA
    return [
        f"{mbit_per_s:g}",
        f"{rtt_ms:g}",
        f"{results[0].connections}",
        f"{median(one.bits_per_s for one in results) / link_bps:.1%}",
        f"{median(one.goodput_bps for one in results) / link_bps:.1%}",
        f"{median(one.first_byte_s for one in results) * 1000:.0f}",
        f"{median(one.reader_cpu_s for one in results) / gigabytes:.2f}",
        f"{median(one.owner_cpu_s for one in results) / gigabytes:.2f}",
    ]


if __name__ == "__main__":
    main()
