"""Times an update by several versions of the project, which take turns in one process.

    git worktree add ../before <revision>
    python benchmarks/versions.py before=../before after=.

Each argument names a version and its folder. The table has wall time and CPU time, the ratio of
CPU time to the first version, and the share of the machine's peak.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import interleave, make_peak

_SIZES = {
    "paper": {},
    "small": {"width": 128, "layers": 2, "num_qs": 2},
    "tiny": {"width": 8, "layers": 4, "num_qs": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", help="name=folder, the earliest first")
    parser.add_argument("--size", choices=_SIZES, default="paper", help="of the networks")
    parser.add_argument("--repeats", type=int, default=10, help="rounds")
    parser.add_argument("--updates", type=int, default=1, help="updates of a version in a round")
    arguments = parser.parse_args()
    peak, peak_flops = make_peak()
    candidates, flops = {"peak": peak}, 0.0
    for version in arguments.versions:
        name, _, folder = version.partition("=")
        if not (Path(folder) / "qam_jax").is_dir() or not folder:
            parser.error(f"{version!r}: expected name=folder, with a folder that holds qam_jax/.")
        run, flops = _compile(Path(folder).resolve(), _SIZES[arguments.size])
        candidates[name] = lambda run=run: [run() for _ in range(arguments.updates)][-1]
    times = interleave(candidates, arguments.repeats)
    limit = peak_flops / np.median(times.pop("peak").cpu)
    print(f"peak by processor time: {limit / 1e9:.1f} GFLOP/s")
    first = None
    for name, spent in times.items():
        wall, cpu = (1e3 * np.percentile(t, (25, 50, 75)) / arguments.updates for t in spent)
        first = first or cpu[1]
        print(
            f"{name:12s} {wall[1]:9.2f} ms by the clock, {cpu[1]:9.2f} by processor time "
            f"({cpu[0]:.2f} to {cpu[2]:.2f}), times {cpu[1] / first:.3f}, "
            f"{1e3 * flops / cpu[1] / limit:.0%} of peak"
        )


def _compile(folder: Path, changes: dict[str, Any]):
    """Compiles the update of the version in a folder by its own benchmark, and counts FLOPs."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("qam_jax", "training"):
            del sys.modules[name]
    own = [str(folder / "benchmarks"), str(folder)]
    sys.path[:0] = own
    try:
        training = importlib.import_module("training")
    finally:
        del sys.path[: len(own)]
    found = Path(sys.modules["qam_jax"].__file__).resolve()
    if not found.is_relative_to(folder):
        sys.exit(f"qam_jax came from {found} instead of {folder}.")
    config = training.make_config(**changes)
    run, _ = training.compile_update(config, 28, 5)
    return run, training.needed_flops(config, 28, 5)


if __name__ == "__main__":
    main()
