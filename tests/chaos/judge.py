"""
The judge: reads what a run has left and prints one line for each promise.

Run as `python -m chaos.judge DIR ...` with `tests` on the path; judging again changes nothing but
`verdict.json`. Exit status 1 when a promise is not kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from chaos.checks import CHECKS
from chaos.evidence import Evidence
from chaos.findings import Finding

#: 0 of n bounds the true share below 3/n with 95 % confidence.
RULE_OF_THREE: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One promise against one run."""

    promise: str
    scenario: str
    fault: str
    what: str
    value: float
    bound: float
    unit: str
    n: int
    is_floor: bool
    is_kept: bool
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        sign = ">=" if self.is_floor else "<="
        unit = f" {self.unit}" if self.unit else ""
        mark = "kept" if self.is_kept else "BROKEN"
        zero = (
            f", so below {RULE_OF_THREE / self.n:.1e} with 95 %"
            if self.bound == 0 and self.value == 0 and self.n
            else ""
        )
        return (
            f"{self.promise:<4} {self.scenario:<12} {mark:<6} {self.what}: "
            f"{self.value:.4g}{unit} {sign} {self.bound:g}{unit} (n = {self.n}{zero})"
        )


def judge(directory: Path) -> list[Verdict]:
    """The verdicts on a run, which are also written to its `verdict.json`."""
    evidence = Evidence.read(directory)
    scenario = evidence.scenario
    verdicts = []
    for check in scenario["checks"]:
        finding = CHECKS[check["name"]](evidence, check["options"])
        verdicts.append(
            Verdict(
                promise=check["promise"],
                scenario=scenario["name"],
                fault=scenario["fault"],
                what=finding.what,
                value=finding.value,
                bound=check["bound"],
                unit=finding.unit,
                n=finding.n,
                is_floor=finding.is_floor,
                is_kept=_is_kept(finding, check["bound"], needs=check["needs"]),
                examples=finding.examples,
            )
        )
    document = [asdict(verdict) for verdict in verdicts]
    (directory / "verdict.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return verdicts


def _is_kept(finding: Finding, bound: float, *, needs: int) -> bool:
    if finding.n < needs:
        # A check that saw nothing proves nothing.
        return False
    return finding.value >= bound if finding.is_floor else finding.value <= bound


def show(verdicts: Iterable[Verdict]) -> bool:
    """Print verdicts, examples below those that are not kept; whether all are kept."""
    are_kept = True
    for verdict in verdicts:
        print(verdict)
        if not verdict.is_kept:
            are_kept = False
            for example in verdict.examples:
                print(f"       {example}")
    return are_kept


def main() -> None:
    """Judge the directories of the command line."""
    kept = [show(judge(Path(one))) for one in sys.argv[1:]]
    raise SystemExit(0 if kept and all(kept) else 1)


if __name__ == "__main__":
    main()
