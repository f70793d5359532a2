"""Launches many runs: `python experiments/sweep.py --study=main --dry_run`.

The runs are a named study (--list), a .toml file of your own, or --methods, --domains or --envs,
--seeds and --grid. Arguments after -- are flags of train_offline.py for all runs. The same command
skips finished runs, continues stopped ones and tries failed ones again.
"""

import ast
import contextlib
import dataclasses
import shlex
import sys
from collections import Counter
from pathlib import Path

from absl import flags

from qam_jax.runs.command_line import run_main, until_closed

_SCRIPT = Path(__file__).resolve().parent / "train_offline.py"
_SHOWN = 20  # failed runs that are listed

_STUDY = flags.DEFINE_string("study", "", "A named study, or the path of a .toml file.")
_LIST = flags.DEFINE_bool("list", False, "Prints the named studies.")
_METHODS = flags.DEFINE_list("methods", [], "Only these methods; * stands for anything.")
_DOMAINS = flags.DEFINE_list("domains", [], "Only these domains, such as cube-*.")
_ENVS = flags.DEFINE_list("envs", [], "Without --study: full names of environments.")
_TASKS = flags.DEFINE_string("tasks", "", "Only these tasks, such as 1-3.")
_SEEDS = flags.DEFINE_string("seeds", "", "Only these seeds, such as 0-3,7.")
_SEEDS_PER_RUN = flags.DEFINE_integer(
    "seeds_per_run", 1, "Consecutive seeds that share one program.", lower_bound=1
)
_GRID = flags.DEFINE_multi_string(
    "grid", [], "<flag>=<value>,<value>: a run with each, such as config.inv_temp=1,3. Repeatable."
)
_PRESET = flags.DEFINE_string("preset", None, "Preset of the runs, in place of the study's.")
_GROUP = flags.DEFINE_string("group", "", "Folder of the runs, in place of the study's.")
_SAVE_DIR = flags.DEFINE_string("save_dir", "exp", "Folder of all runs.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Prints the commands and counts, and ends.")
_EXPLAIN = flags.DEFINE_bool("explain", False, "Prints the changes by the preset, once per case.")
_SPEEDS = flags.DEFINE_list(
    "updates_per_second", [],
    "For the estimate of hours: a number, or <method>=<number>,...; by default as measured.",
)  # fmt: skip
_BACKEND = flags.DEFINE_enum(
    "backend", "local", ["local", "slurm", "commands"], "Executes the runs."
)
_PARALLEL = flags.DEFINE_integer(
    "parallel", None, "local: runs at a time; by default one, or one per GPU.", lower_bound=1
)
_GPUS = flags.DEFINE_list("gpus", [], "local: GPUs that runs take turns on, such as 0,1.")
_SLURM = flags.DEFINE_multi_string(
    "slurm", [], "slurm: <parameter>=<value> of submitit, such as time=720 (minutes). Repeatable."
)
_COMMANDS_FILE = flags.DEFINE_string("commands_file", "commands.txt", "commands: the file.")


def main(argv: list[str]) -> None:
    prints_only = _LIST.value or _DRY_RUN.value
    with until_closed() if prints_only else contextlib.nullcontext():
        from qam_jax.sweeps.studies import load_study, study_names

        if _LIST.value:
            print(*(f"{name}: {load_study(name).description}" for name in study_names()), sep="\n")
        else:
            _sweep(_choose_study(), argv[1:])


def _sweep(study, extra_flags: list[str]) -> None:
    from qam_jax.sweeps.estimate import parse_speeds
    from qam_jax.sweeps.jobs import State, make_jobs, read_state
    from qam_jax.sweeps.slurm import queued_jobs

    speeds = parse_speeds(_SPEEDS.value)
    use_slurm = _BACKEND.value == "slurm" and not _DRY_RUN.value
    executor = _make_executor(study.group) if use_slurm else None
    jobs = make_jobs(study, _SCRIPT, _SAVE_DIR.value, extra_flags, _SEEDS_PER_RUN.value)
    queued = queued_jobs(Path(executor.folder)) if executor else ()
    states = {job.name: read_state(job, queued) for job in jobs}
    to_do = (State.NEW, State.UNFINISHED, State.FAILED)
    left = [job for job in jobs if states[job.name][0] in to_do]
    if _EXPLAIN.value:
        cases = {(job.method, *job.resolved.notes[1:]): job.resolved.notes for job in jobs[::-1]}
        print(*(line for notes in reversed(cases.values()) for line in notes), sep="\n")
    if _DRY_RUN.value:
        print(*(shlex.join(job.command) for job in left), sep="\n")
    _print_size(study, jobs)
    print(_totals(State, states))
    _list_errors("Failed before:", states, State.FAILED)
    damaged = _list_errors("Failed, and left alone until mended or removed:", states, State.DAMAGED)
    _print_hours(jobs, left, speeds)
    if _DRY_RUN.value:
        return
    if (left and _execute(left, executor)) or damaged:
        sys.exit(1)


def _choose_study():
    from qam_jax.sweeps.studies import Study, choose, load_study, parse_numbers, study_names

    chosen = {"methods": _METHODS.value, "domains": _DOMAINS.value}
    for name, flag in (("tasks", _TASKS), ("seeds", _SEEDS)):
        try:
            chosen[name] = parse_numbers(flag.value)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from error
    changes = {"group": _GROUP.value} if _GROUP.value else {}
    changes |= {} if _PRESET.value is None else {"preset": _PRESET.value}
    grid = dict(map(_parse_grid, _GRID.value))
    if _STUDY.value:
        for flag, given in (("--envs", _ENVS.value), ("--grid", grid)):
            if given:
                raise ValueError(f"{flag} is for sweeps without --study; write a .toml file.")
        return dataclasses.replace(choose(load_study(_STUDY.value), **chosen), **changes)
    if not _METHODS.value:
        raise ValueError(
            f"which runs? Give --study ({', '.join(study_names())}, or a .toml file), or "
            "--methods with --domains or --envs."
        )
    fields = {"seeds": 1, **{name: value for name, value in chosen.items() if value}}
    if _METHODS.value == ["all"]:
        fields["methods"] = "all"
    return Study(name="sweep", env_names=_ENVS.value, grid=grid, **fields, **changes)


def _parse_grid(text: str) -> tuple[str, list[str]]:
    flag, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"--grid: expected <flag>=<value>,<value>, got {text!r}.")
    try:
        return flag.lstrip("-"), ast.literal_eval(f"[{values}]")  # so that (16,16) is one value
    except (SyntaxError, ValueError):
        return flag.lstrip("-"), values.split(",")


def _print_size(study, jobs) -> None:
    parts = {
        "method": study.methods, "environment": study.env_names, "seed": study.seeds,
        "variant": study.variants,
    }  # fmt: skip
    sizes = ", ".join(_count(len(values), noun) for noun, values in parts.items())
    num_runs = sum(len(job.folders) for job in jobs)
    in_jobs = f" in {_count(len(jobs), 'job')}" if len(jobs) < num_runs else ""
    group = f"{_SAVE_DIR.value}/{study.group}"
    print(f"Study {study.name} in {group}: {_count(num_runs, 'run')}{in_jobs} ({sizes}).")


def _print_hours(jobs, left, given) -> None:
    from qam_jax.sweeps.estimate import hours, measure_speeds

    speeds = {**measure_speeds(jobs), **given}
    total, unknown = hours(left, speeds)
    words = f"To do: {_count(len(left), 'job')}"
    if len(unknown) < len({job.method for job in left}):
        cost = f"{total:,.1f} GPU-hours" if total >= 1 else f"{60 * total:.2g} GPU-minutes"
        words += f", {cost} of updates"
    known = (f"{method or 'others'} {speed:.4g}" for method, speed in sorted(speeds.items()))
    print(f"{words} (updates/s: {', '.join(known)})." if speeds else f"{words}.")
    if unknown:
        print(f"Speed not known of {', '.join(unknown)}: give --updates_per_second for the hours.")


def _execute(jobs, executor) -> bool:
    """Writes the commands of the jobs, submits them, or executes them here.

    Tells whether any has failed.
    """
    from qam_jax.files import atomic_write, user_path
    from qam_jax.sweeps.slurm import submit

    if _BACKEND.value == "commands":
        path = user_path(_COMMANDS_FILE.value)
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{shlex.join(job.command)}\n" for job in jobs))
        print(f"Wrote {_count(len(jobs), 'command')}, one a line, to {path}.")
        return False
    if executor:
        numbers = submit(jobs, executor)
        print(f"Submitted {_count(len(numbers), 'job')}, {numbers[0]} to {numbers[-1]}.")
    failed = not executor and _run_here(jobs)
    print(f"Logs: {jobs[0].task.log.parent.parent}")
    return failed


def _run_here(jobs) -> bool:
    """Executes the jobs; tells whether any has failed."""
    from qam_jax.memory import check_processes
    from qam_jax.runs.lock import FAILED, FINISHED, STOPPED
    from qam_jax.sweeps.local import run_local
    from qam_jax.training.launch import check_data_folder

    for job in jobs:
        check_data_folder(job.resolved.settings)
    parallel = _PARALLEL.value or len(_GPUS.value) or 1
    check_processes(f"--parallel={parallel}", min(parallel, len(jobs)), num_bytes=5 * 10**8)
    outcomes = run_local(jobs, parallel=parallel, gpus=_GPUS.value)
    print(_totals((FINISHED, STOPPED, FAILED), outcomes))
    return _list_errors("Failed:", outcomes, FAILED)


def _make_executor(group: str):
    from qam_jax.files import user_path
    from qam_jax.sweeps.slurm import make_executor

    parameters = {}
    for text in _SLURM.value:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--slurm takes <parameter>=<value>, got {text!r}.")
        parameters[name] = int(value) if value.isdigit() else value
    folder = user_path(_SAVE_DIR.value) / group / "logs" / "slurm"
    return make_executor(folder, f"qam_jax-{group}", parameters)


def _list_errors(title, results, wanted) -> bool:
    """Lists the errors of the jobs whose state or outcome is `wanted`; tells whether any is."""
    lines = [f"  {name}: {error}" for name, (state, error) in results.items() if state == wanted]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"  and {len(lines) - _SHOWN} more"]
    if lines:
        print(title, *lines, sep="\n")
    return bool(lines)


def _totals(kinds, results) -> str:
    counts = Counter(kind for kind, _ in results.values())
    return ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


if __name__ == "__main__":
    run_main(main, hint="Flags of the runs themselves come after --.", operands=True)
