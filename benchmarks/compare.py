"""What got slower between two runs: `python benchmarks/compare.py before.json after.json`.

A figure counts as slower or faster if its median moved by more than both runs' quartile spreads
together, and by more than `--least`. A figure that was taken once has no spread: it has to move by
a quarter. A machine whose speed changes from run to run shows in the row `peak`: judge by that too.
Ends with status 1 if anything got slower, and 2 if the files cannot be compared.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

_LEAST_OF_ONE = 0.25  # relative change that counts, of a figure that was taken once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--least", type=float, default=0.05, help="relative change that counts")
    arguments = parser.parse_args()
    before, after = (_read(path) for path in (arguments.before, arguments.after))
    differing = [
        name for name in ("processor", "usable_cpus", "jax", "backend")
        if before["machine"].get(name) != after["machine"].get(name)
    ]  # fmt: skip
    if before.get("fast") or after.get("fast"):
        print("One was taken with --fast: its figures mean nothing.")
    if differing:
        print(f"The two were not taken under the same conditions: {', '.join(differing)} differ.")
    names = [{row["name"] for row in report["rows"]} for report in (before, after)]
    if not names[0] & names[1]:
        _give_up("the two have no figure in common.")
    if names[0] ^ names[1]:
        print(f"In one of the two only: {', '.join(sorted(names[0] ^ names[1]))}.")
    slower = compare(before["rows"], after["rows"], arguments.least)
    sys.exit(1 if slower else 0)


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]], least: float) -> list[str]:
    """Prints what changed; returns the names of what got slower."""
    earlier, slower, compared = {row["name"]: row for row in before}, [], 0
    for row in after:
        old = earlier.get(row["name"])
        if old is None or not row["unit"]:
            continue
        compared += 1
        verdict = judge(old, row, least)
        if verdict:
            times = f" (times {row['median'] / old['median']:.2f})" if old["median"] else ""
            print(
                f"{verdict}: {row['name']}, {old['median']:.4g} to {row['median']:.4g} "
                f"{row['unit']}{times}"
            )
        if verdict == "slower":
            slower.append(row["name"])
    print(f"{compared} figures compared, {len(slower)} got slower by more than the noise.")
    return slower


def judge(old: dict[str, Any], new: dict[str, Any], least: float) -> str:
    """`slower`, `faster`, or nothing where the change may be noise."""
    change = new["median"] - old["median"]
    noise = (old["high"] - old["low"]) + (new["high"] - new["low"])
    if min(old["repeats"], new["repeats"]) == 1:
        least = max(least, _LEAST_OF_ONE)
    if not abs(change) > max(noise, least * abs(old["median"])):  # also of what is not a number
        return ""
    return "faster" if (change > 0) == new["higher_is_better"] else "slower"


def _read(path: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        _give_up(f"cannot read {path}: {error}")
    if not isinstance(report, dict) or not {"machine", "rows"} <= report.keys():
        _give_up(f"{path} is not a report of benchmarks/run.py: it lacks machine or rows.")
    return report


def _give_up(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
