"""Measures speed, beside the limit of the machine: `python benchmarks/run.py`.

Candidates take turns in one process, several times, so that ratios hold on a busy machine. Prints
a table, and writes a JSON file for `compare.py`. Sections: update, loop, growth, seeds, start,
evaluation, data. `--fast` checks that everything works; its figures mean nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import training
from data import data
from evaluation import evaluation
from measure import machine
from start import start

_SECTIONS = {
    "update": (training.update, 10),  # and the number of rounds
    "loop": (training.loop, 10),
    "growth": (training.growth, 5),
    "seeds": (training.seeds, 20),
    "start": (start, 3),
    "evaluation": (evaluation, 3),
    "data": (data, 5),
}


def main() -> None:
    arguments = _parse()
    facts = machine()
    print(f"{facts['processor']}, {facts['usable_cpus']} CPUs, jax {facts['jax']}", flush=True)
    rows, out = [], Path(arguments.out)
    out.touch()  # fails before anything is measured
    for name in arguments.only:
        section, repeats = _SECTIONS[name]
        repeats = 2 if arguments.fast else arguments.repeats or repeats
        for measured in section(repeats, arguments.fast):
            rows.append(measured)
            print(describe(measured), flush=True)
        facts["load_at_the_end"] = machine()["load"]
        report = {"machine": facts, "fast": arguments.fast, "rows": rows}
        out.write_text(json.dumps(report, indent=1) + "\n")  # kept if a later section fails
    print(f"Written: {arguments.out}")


def describe(measured: dict[str, Any]) -> str:
    """Formats a row of the table."""
    text = f"{measured['name']:38s} {measured['median']:12.4g} {measured['unit']:20s}"
    if measured["repeats"] > 1:
        text += f" ({measured['low']:.4g} to {measured['high']:.4g})"
    if "share_of_peak" in measured:
        text += f"  {measured['gflops_per_second']:.1f} GFLOP/s, {measured['share_of_peak']:.0%}"
        text += f" of peak ({measured['share_of_peak_by_cpu']:.0%} by CPU time)"
    if "per_seed" in measured:
        text += f"  {measured['per_seed']:.1f} of each"
    return text


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        type=_sections,
        default=list(_SECTIONS),
        help="sections, with commas between: " + ",".join(_SECTIONS),
    )
    parser.add_argument("--repeats", type=int, default=0, help="rounds; 0 for each section's own")
    parser.add_argument("--out", default="benchmark.json", help="the JSON to write")
    parser.add_argument("--fast", action="store_true", help="check that everything works")
    return parser.parse_args()


def _sections(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in _SECTIONS:
            raise argparse.ArgumentTypeError(
                f"there is no section {name!r}; choose from {', '.join(_SECTIONS)}."
            )
    return names


if __name__ == "__main__":
    main()
