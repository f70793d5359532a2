"""Jobs: the commands of a study's runs, their folders and their states."""

import contextlib
import dataclasses
import enum
import functools
import importlib
import inspect
import itertools
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from qam_jax import agents
from qam_jax.envs import make_env
from qam_jax.files import DamagedError, is_held, read_json
from qam_jax.runs.command_line import define_config
from qam_jax.runs.folder import check_folder, folder_of
from qam_jax.runs.lock import LOCK
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.settings import RunSettings, check_settings, define_flags
from qam_jax.sweeps.studies import Study, Variant, flag_text
from qam_jax.sweeps.worker import Task
from qam_jax.training.launch import Resolved, resolve_flags

# Flags that the sweep gives to each run, and the flags of the sweep that decide on them.
_SWEEP_FLAGS = {
    "config": "--methods", "env_name": "--envs", "seed": "--seeds", "run_id": "--grid",
    "group": "--group", "save_dir": "--save_dir", "preset": "--preset",
    "num_seeds": "--seeds_per_run",
}  # fmt: skip


class State(enum.StrEnum):
    """State of a job, read from its folder."""

    NEW = "not started"
    UNFINISHED = "unfinished"  # stopped in good order or killed; can be continued
    FAILED = "failed"
    DAMAGED = "damaged"  # its folder cannot be read, so that it cannot be continued
    QUEUED = "queued"  # with SLURM
    RUNNING = "running"
    FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class Job:
    """A command of a sweep: one run, or several seeds in one program."""

    name: str  # <env_name>/<run id>, unique in the sweep
    command: tuple[str, ...]
    resolved: Resolved  # what the command results in
    folders: tuple[Path, ...]  # of its runs, by seed

    @property
    def folder(self) -> Path:
        """Folder of the first run."""
        return self.folders[0]

    @property
    def method(self) -> str:
        """The name of the algorithm."""
        return self.resolved.config.agent_name

    @property
    def task(self) -> Task:
        """The command with its log and record, which are in `logs` of the group's folder."""
        logs = self.folder.parent.parent / "logs"
        return Task(self.command, logs / f"{self.name}.log", logs / f"{self.name}.json")


def make_jobs(
    study: Study,
    script: Path,  # train_offline.py, beside its `configs`
    save_dir: str,
    extra_flags: Sequence[str] = (),  # of all runs, as `--name=value`; they win over the study's
    seeds_per_run: int = 1,  # largest number of consecutive seeds in one job
) -> list[Job]:
    """Makes the jobs of a study, and checks each as `train_offline.py` would.

    The first seed of all runs comes first. A config field among the flags for all runs is left out
    for methods without it, if another method of the study has it.

    Raises ValueError, which names the run and the error, if a run is invalid.
    """
    extra = dict(map(_split_flag, extra_flags))
    _check_names(study, extra)
    common = {"group": study.group, "save_dir": save_dir}
    common |= {"preset": study.preset} if study.preset else {}
    fields = set().union(*map(agents.get_config, study.methods))
    jobs: list[Job] = []
    for env_name, variant, method in itertools.product(
        study.env_names, study.variants, study.methods
    ):
        others = {f"config.{field}" for field in fields - set(agents.get_config(method))}
        given = {name: v for name, v in {**study.flags, **extra}.items() if name not in others}
        options = {"env_name": env_name, **common, **given, **variant.flags}
        try:
            options |= _scaled_fields(method, options, variant)
            resolved = resolve(method, _format_flags(options))
            if not resolved.settings.preset:  # which knows its environments
                _check_env(env_name, resolved.settings.env_module)
            run_name = f"{method}-{variant.name}" if variant.name else method
            for seeds in _group_consecutive(study.seeds, seeds_per_run):
                jobs.append(_make_job(method, run_name, seeds, options, resolved, script))
        except ValueError as error:
            label = f"{method} ({variant.name})" if variant.name else method
            raise ValueError(f"{label} in {env_name}: {error}") from error
    return sorted(jobs, key=lambda job: study.seeds.index(job.resolved.settings.seed))


def read_state(job: Job, queued: Collection[str] = ()) -> tuple[State, str]:
    """Reads the state of a job, and the error of a failed or damaged one.

    SLURM's queue holds the jobs of the names in `queued`. Raises ValueError, naming the
    differences, if the job's folder holds a run of another config.
    """
    settings, config, _ = job.resolved
    try:
        for index, folder in enumerate(job.folders):
            check_folder(folder, settings.of_seed(index), config)
    except (DamagedError, OSError) as error:
        return State.DAMAGED, str(error)
    if last_step(job) >= settings.total_steps:
        return State.FINISHED, ""
    if any(is_held(folder / LOCK) for folder in job.folders):
        return State.RUNNING, ""
    if job.name in queued:
        return State.QUEUED, ""
    with contextlib.suppress(DamagedError, OSError, LookupError, TypeError):  # no such record
        if recorded := read_json(job.task.record)["error"]:
            return State.FAILED, recorded
    begun = any(folder.exists() for folder in job.folders)
    return (State.UNFINISHED if begun else State.NEW), ""


def last_step(job: Job) -> int:
    """The step of the newest checkpoint that all runs of a job have; 0 without one."""
    names = ([path.name for path in folder.glob("checkpoints/*")] for folder in job.folders)
    return min(max((int(name) for name in each if name.isdigit()), default=0) for each in names)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Reads a run's file of metrics; no rows if the file is missing or damaged."""
    with contextlib.suppress(DamagedError, OSError):
        return read_csv(path)
    return []


def resolve(method: str, options: Sequence[str]) -> Resolved:
    """Resolves `train_offline.py --config=<method> <options>`. Raises ValueError if it refuses."""
    values = flags.FlagValues()
    define_flags(RunSettings, values)
    arguments = ["train_offline.py", *options]
    define_config(agents.get_config(method), arguments, values)
    try:
        rest = values(arguments)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected arguments {rest}; flags look like --name=value.")
    resolved = resolve_flags(values)
    check_settings(resolved.settings)
    agents.make_agent(resolved.config)
    return resolved


def _make_job(
    method: str,
    run_name: str,
    seeds: Sequence[int],
    options: dict[str, Any],
    resolved: Resolved,
    script: Path,
) -> Job:
    """Makes the job of some seeds, whose folders are those that each seed has alone."""
    own: dict[str, Any] = {"seed": seeds[0], "run_id": f"{run_name}-seed{seeds[0]}"}
    if len(seeds) > 1:  # `RunSettings.of_seed` adds the seeds to the run's id
        own = {"seed": seeds[0], "num_seeds": len(seeds), "run_id": run_name}
    settings = dataclasses.replace(resolved.settings, **own)
    check_settings(settings)
    places = range(len(seeds))
    folders = tuple(folder_of(settings.of_seed(place), resolved.config) for place in places)
    config = script.parent / "configs" / f"{method}.py"
    if method not in agents.algorithm_names():  # a module of your own is its own config file
        config = Path(inspect.getfile(importlib.import_module(method)))
    given = _format_flags({"config": config, **options, **own})
    command = (sys.executable, str(script), *given)
    name = "/".join(folders[0].parts[-2:]) + (f"-{seeds[-1]}" if len(seeds) > 1 else "")
    return Job(name, command, resolved._replace(settings=settings), folders)


def _group_consecutive(seeds: Sequence[int], most: int) -> list[list[int]]:
    """The seeds in groups of at most `most` consecutive ones."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1 and len(groups[-1]) < most:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


@functools.cache
def _check_env(env_name: str, env_module: str) -> None:
    """Raises ValueError if there is no such environment."""
    make_env(env_name, env_module).close()


def _scaled_fields(method: str, options: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """The flags of the config fields that a variant multiplies."""
    config = resolve(method, _format_flags(options)).config if variant.scale else {}
    values = {f"config.{field}": value for field, value in config.items()}
    for flag in variant.scale:
        if not isinstance(values.get(flag), int | float):
            raise ValueError(f"scale: {flag!r} is no number of the config of {method!r}.")
    return {flag: float(f"{values[flag] * by:.12g}") for flag, by in variant.scale.items()}


def _format_flags(options: dict[str, Any]) -> list[str]:
    return [
        f"--{name}" if value is None else f"--{name}={flag_text(value)}"
        for name, value in options.items()
    ]


def _split_flag(flag: str) -> tuple[str, str | None]:
    """Name and value of `--name=value`; `--name` has no value."""
    if not flag.startswith("-"):
        raise ValueError(f"unexpected argument {flag!r}: flags of the runs look like --name=value.")
    name, equals, value = flag.lstrip("-").partition("=")
    return name, value if equals else None


def _check_names(study: Study, extra: dict[str, Any]) -> None:
    """Raises ValueError for flags that the sweep or the study's variants set themselves."""
    varied = {name for variant in study.variants for name in (*variant.flags, *variant.scale)}
    for name in (*extra, *study.flags, *varied):
        if name in _SWEEP_FLAGS:
            raise ValueError(f"--{name} is set by the sweep itself: see {_SWEEP_FLAGS[name]}.")
        if name in extra and name in varied:
            raise ValueError(f"--{name} differs between the study's variants: leave it out.")
