"""Compares every method with the paper's code: `python benchmarks/agreement.py --paper=<folder>`.

The folder is a checkout of https://github.com/ColinQiyangLi/qam. Both codes get the same
parameters, windows and noise: what each of them draws is replaced by numbers that depend on the
purpose of the draw and on its shape. An error is the largest difference, over the largest
magnitude: of the loss, of the actions, or of all numbers of one network together. The table has
the largest error of all cases of a method. The exit status is 1 if an error is above the limit.

The paper's code moves averages towards the parameters from before the step, ours towards those
from after it. Here ours does as the paper's.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from agreement_cases import (
    HORIZON,
    METHODS,
    SIZES,
    Case,
    Outcome,
    cases_of,
    first_rows,
    fixed_draws,
    make_case,
    make_columns,
    numbers,
    run_case,
    summarise,
)
from agreement_paper import PAPER_METHODS, load_paper, paper_windows, run_paper, to_paper

from qam_jax import __version__
from qam_jax.agents import AgentState, display_name
from qam_jax.data.dataset import gather_windows, make_dataset

LIMIT = 1e-5
MAX_LOST = 0.01  # share of a network's numbers that are not compared after an update


def main() -> None:
    """Prints a table; see the text at the top."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", required=True, type=Path, help="checkout of the paper's code")
    parser.add_argument("--methods", help="names, by commas; by default all that it can take")
    parser.add_argument("--store", type=Path, help="only writes the methods' numbers there")
    options = parser.parse_args()
    load_paper(options.paper.expanduser().resolve())
    revision = _revision(options.paper)
    every = METHODS if options.store else PAPER_METHODS
    names = options.methods.split(",") if options.methods else list(every)
    if options.store:
        store(options.store, names, revision)
        return
    print(f"revision {revision}, limit {LIMIT:g}")
    print(f"windows: largest difference {compare_windows():.1e}\n")
    columns = ["loss", "gradients", "one update", "three updates", "actions"]
    print(f"| method | cases | {' | '.join(columns)} |")
    print(f"|{'---|' * (len(columns) + 2)}")
    failed = []
    for name in names:
        with jax.disable_jit():
            errors = [compare(name, changes, seed) for seed, changes in enumerate(cases_of(name))]
        worst = {column: max(each[column] for each in errors) for column in columns}
        print(f"| {display_name(name)} | {len(errors)} |", end="")
        print(*(f" {error:.1e} |" for error in worst.values()), sep="", flush=True)
        if not max(worst.values()) <= LIMIT:  # also where it is not a number
            failed.append(name)
    if failed:
        sys.exit(f"beyond the limit: {', '.join(failed)}")


def compare(name: str, changes: dict[str, Any], seed: int) -> dict[str, float]:
    """Largest relative error of each quantity in one case."""
    case = make_case(name, changes, seed)
    own, paper = run_own(case, make_targets=_lagging_targets), _run_theirs(case)
    own = Outcome(
        own.loss,
        to_paper(name, own.gradients),
        tuple(to_paper(name, params) for params in own.params),
        tuple(to_paper(name, targets) for targets in own.targets),
        own.actions,
    )
    clear = partial(_clear_of_rounding, gradients=paper.gradients)
    after = [
        max(
            _error(clear(own.params[index]), clear(paper.params[index])),
            _error(clear(own.targets[index]), clear(paper.targets[index])),
        )
        for index in (0, 1)
    ]
    return {
        "loss": abs(own.loss - paper.loss) / abs(paper.loss),
        "gradients": _error(own.gradients, paper.gradients),
        "one update": after[0],
        "three updates": after[1],
        "actions": _error({"": own.actions}, {"": paper.actions}),
    }


def store(path: Path, names: list[str], revision: str) -> None:
    """Writes a line of JSON for each case: the numbers of the paper's code, or ours if it has none.

    Args:
      path: of the file; its lines of other methods stay.
      names: of the methods.
      revision: of the paper's code.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if row["method"] not in names]
    for name in names:
        for seed, changes in enumerate(cases_of(name)):
            case = make_case(name, changes, seed, num_updates=1)
            with jax.disable_jit():
                if name in PAPER_METHODS:
                    outcome, source = _in_our_names(name, _run_theirs(case)), f"paper {revision}"
                else:
                    outcome, source = run_own(case), f"qam_jax {__version__}"
            rows.append({"source": source, **summarise(case, outcome)})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _in_our_names(name: str, outcome: Outcome) -> Outcome:
    """An outcome of the paper's code, with our names of the networks."""
    names = {paper: own for own, (paper, _) in PAPER_METHODS[name].networks.items()}

    def rename(networks: dict[str, Any]) -> dict[str, Any]:
        return {names[paper]: tree for paper, tree in networks.items()}

    params = tuple(map(rename, outcome.params))
    return outcome._replace(gradients=rename(outcome.gradients), params=params)


def run_own(case: Case, **options: Any) -> Outcome:
    """What our code gives in a case with the fixed draws; for the options see `run_case`."""
    draws = _Draws(_our_numbers)
    with draws.in_place():
        return run_case(case, start=draws.start, **options)


def _run_theirs(case: Case) -> Outcome:
    """What the paper's code gives in a case with the fixed draws."""
    draws = _Draws(_PaperNumbers(case.name))
    with draws.in_place():
        return run_paper(case, draws.start)


def compare_windows() -> float:
    """Largest difference of windows of data; actions beyond an episode's end do not count."""
    columns, differences = make_columns(0), []
    dataset = make_dataset(columns)
    for index in range(3):
        rows = first_rows(index)
        own = gather_windows(dataset, dataset.start_rows[rows], HORIZON, SIZES["discount"])
        paper = paper_windows(columns, rows)
        for name in ("observations", "rewards", "masks", "weights", "next_observations"):
            differences.append(np.abs(getattr(own, name) - getattr(paper, name)).max())
        gaps = np.abs(own.actions - paper.actions).max(axis=(1, 2))
        differences.append((gaps * np.asarray(own.weights)).max())
    return float(max(differences))


def _clear_of_rounding(networks: dict[str, Any], gradients: dict[str, Any]) -> dict[str, Any]:
    """Networks with 0 where the gradient is at most `LIMIT` of its network's largest.

    Adam divides by such a gradient, so that its rounding decides the step. Raises ValueError if
    these are more than a few numbers.
    """

    def clear(network: Any, gradient: Any) -> Any:
        leaves = jax.tree.leaves(gradient)
        bound = LIMIT * max(float(jnp.abs(leaf).max()) for leaf in leaves)
        lost = sum(int((jnp.abs(leaf) <= bound).sum()) for leaf in leaves)
        if lost > MAX_LOST * sum(leaf.size for leaf in leaves):
            raise ValueError(f"{lost} gradients of a network are next to nothing.")
        return jax.tree.map(lambda a, g: jnp.where(jnp.abs(g) > bound, a, 0), network, gradient)

    return {
        name: clear(network, gradients[name]) if name in gradients else network
        for name, network in networks.items()
    }


def _error(own: dict[str, Any], paper: dict[str, Any]) -> float:
    """Largest relative error of a network."""
    if own.keys() != paper.keys():
        raise ValueError(f"ours are {sorted(own)}, the paper's {sorted(paper)}.")
    errors = [0.0]
    for name in own:
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), own[name], paper[name])
        sizes = jax.tree.map(lambda a: float(jnp.abs(a).max()), paper[name])
        gap, size = (np.max(jax.tree.leaves(tree)) for tree in (gaps, sizes))
        errors.append(gap / size if gap else 0.0)
    return float(np.max(errors))


def _lagging_targets(before: AgentState, after: AgentState) -> Any:
    """Averages that move towards the parameters from before the step, if they move at all."""
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), before.target_params, after.target_params
    )
    if all(jax.tree.leaves(same)):
        return before.target_params
    online = {name: before.params[name] for name in before.target_params}
    return optax.incremental_update(online, before.target_params, SIZES["tau"])


class _Draws:
    """Numbers in place of random ones, by the functions that draw them."""

    def __init__(self, make: Any):
        self._make, self._counts = make, Counter()

    def start(self) -> None:
        """Begins an action or an update."""
        self._counts.clear()

    def in_place(self) -> Any:
        """Context in which `jax.random` draws these numbers."""
        return fixed_draws(
            lambda shape: jnp.asarray(self._draw("normal", shape)),
            lambda shape: jax.nn.sigmoid(self._draw("time", shape)),
            lambda shape, low, high: (
                low + jnp.int32((high - low) * jax.nn.sigmoid(self._draw("time", shape)))
            ),
        )

    def _draw(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        frame, stack = sys._getframe(1), []
        while frame is not None:
            stack += reversed(frame.f_code.co_qualname.split("."))
            frame = frame.f_back
        return self._make(stack, kind, shape, self._counts)


def _number(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a purpose, however they are batched."""
    return numbers(purpose, (int(np.prod(shape)),)).reshape(shape)


def _our_numbers(stack: list[str], kind: str, shape: tuple[int, ...], counts: Counter) -> Any:
    """Numbers for a draw of this project, by the innermost function that is known."""
    known = (
        "behavior_cloning_loss path_noise _noises _noisy_critic_loss latent_critic_loss "
        "draw_latents draw_actions edited_actions noisy_actions policy actor_loss value_loss "
        "sample_actions"
    ).split()
    stack = ["policy" if name == "FlowPolicy" else name for name in stack]
    function = next(name for name in stack if name in known)
    phase = "improve" if "actor_loss" in stack else "act"
    index = counts[function, phase, kind]
    counts[function, phase, kind] += 1
    suffix, again = " time" * (kind == "time"), " again" * (index > 0)
    if function == "path_noise":
        return np.stack([_number(f"path {step}", shape[1:]) for step in range(shape[0])])
    if function == "_noises":
        top = " top" * (index % 2)  # with a temperature of 0 it is called twice
        if "_sample" not in stack:
            return _number(f"act{top}", shape)
        rows = [_number(f"{each}{top}", shape[1:]) for each in ("act", "improve")]
        return np.stack(rows[: shape[0]])
    if function == "policy" and index == 1:  # steps of a diffusion
        return np.stack([_number(f"act step {step}", shape[1:]) for step in range(shape[0])])
    purposes = {
        "behavior_cloning_loss": "clone",
        "_noisy_critic_loss": "noisy",
        "latent_critic_loss": "latent",
        "draw_latents": f"{phase} top",
        "draw_actions": f"{phase} top",
        "edited_actions": f"{phase} top",
        "noisy_actions": "act",
        "policy": phase,
        "sample_actions": phase,
        "value_loss": f"learn{again}",
        "actor_loss": "clone" if "make_diffusion_agent" in stack else f"improve{again}",
    }
    return _number(purposes[function] + suffix, shape)


class _PaperNumbers:
    """Numbers for a draw of the paper's code."""

    def __init__(self, name: str):
        self._purposes = {
            "sample_actions": ["act", "act top"],
            "actor_loss": ["clone", "improve", "improve top"],
            "critic_loss": ["noisy"],
            **_PURPOSES.get(PAPER_METHODS[name].agent, {}),
        }

    def __call__(self, stack: list[str], kind: str, shape: tuple[int, ...], counts: Counter) -> Any:
        known = (*self._purposes, "adj_matching", "compute_sde", "ddpm_sampler")
        function = next(name for name in stack if name in known)
        index = counts[function, kind]
        counts[function, kind] += 1
        if function in ("adj_matching", "compute_sde"):
            return _number(f"path {index}", shape)
        if function == "ddpm_sampler":
            return _number(f"act step {index}", shape)
        purpose = self._purposes[function][index]
        return _number(f"{purpose} time" if kind == "time" else purpose, shape)


_PURPOSES = {  # of the draws of a function, in order, where they differ from the usual ones
    "rlpd": {
        "sample_actions": ["act top"], "critic_loss": ["act top"], "actor_loss": ["improve top"],
    },
    "dsrl": {
        "sample_actions": ["act top"], "critic_loss": ["latent"],
        "actor_loss": ["clone", "improve top"],
    },
    "rebrac": {"critic_loss": ["act"]},
}  # fmt: skip


def _revision(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
