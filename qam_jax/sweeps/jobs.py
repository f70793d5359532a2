"""What a study's runs are: the command line of each, its folder, and how it stands."""

import dataclasses
import enum
import functools
import importlib
import inspect
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from qam_jax import agents
from qam_jax.envs import make_env
from qam_jax.files import DamagedError, is_held, read_json
from qam_jax.runs.command_line import unknown_field
from qam_jax.runs.folder import differences_from, folder_of
from qam_jax.runs.lock import LOCK
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.settings import RunSettings, check_settings, define_flags
from qam_jax.sweeps.studies import Study, Variant, flag_text
from qam_jax.sweeps.worker import Task
from qam_jax.training.launch import Resolved, resolve_flags

_OF_THE_SWEEP = {
    "config": "--methods", "env_name": "--envs", "seed": "--seeds", "run_id": "--grid",
    "group": "--group", "save_dir": "--save_dir", "preset": "--preset",
    "num_seeds": "--seeds_per_run",
}  # fmt: skip


class State(enum.Enum):
    """How a job stands, as its folder tells."""

    NEW = "not started"
    UNFINISHED = "unfinished"  # stopped in good order, or killed; to be continued
    FAILED = "failed"
    DAMAGED = "damaged"  # its folder cannot be read, so that it cannot be continued
    QUEUED = "queued"  # with SLURM
    RUNNING = "running"
    FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class Job:
    """One command of a sweep: a run, or those of several seeds in one program.

    Attributes:
      name: `<env_name>/<run id>`, which no other job of the sweep has.
      command: what to execute.
      resolved: what the command comes to.
      folders: of its runs, by seed.
    """

    name: str
    command: tuple[str, ...]
    resolved: Resolved
    folders: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder of its first run."""
        return self.folders[0]

    @property
    def method(self) -> str:
        """The name of the algorithm."""
        return self.resolved.config.agent_name

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.resolved.settings.total_steps

    @property
    def task(self) -> Task:
        """What executes it; log and record are in `logs` of the group's folder."""
        path = str(self.folder.parent.parent / "logs" / self.name)
        return Task(self.command, Path(f"{path}.log"), Path(f"{path}.json"))

    @property
    def text(self) -> str:
        """The command for a shell."""
        return shlex.join(self.command)


def make_jobs(
    study: Study,
    script: Path,
    save_dir: str,
    extra_flags: Sequence[str] = (),
    seeds_per_run: int = 1,
) -> list[Job]:
    """All jobs of a study, every one checked as `train_offline.py` would check it.

    The first seed of everything comes first. Of the flags for all runs, config fields that a method
    does not have, but another method of the study, are left out for it.

    Args:
      study: what to run.
      script: `train_offline.py`, beside its `configs`.
      save_dir: folder of all runs.
      extra_flags: for all runs, as `--name=value`; they win over those of the study.
      seeds_per_run: at most so many consecutive seeds become one job.

    Raises:
      ValueError: naming the run and what is wrong with it.
    """
    extra = dict(_split(flag) for flag in extra_flags)
    _check_names(study, extra)
    jobs = {}
    for env_name in study.env_names:
        for variant in study.variants:
            for method in study.methods:
                common = {"env_name": env_name, "group": study.group, "save_dir": save_dir}
                if study.preset:
                    common["preset"] = study.preset
                everywhere = _fitting(method, study, {**study.flags, **extra})
                options = {**common, **everywhere, **variant.flags}
                try:
                    options |= _scaled(method, options, variant)
                    groups = _consecutive(study.seeds, seeds_per_run)
                    made = _make_jobs_of_seeds(method, variant, options, groups, script)
                except ValueError as error:
                    what = f"{method}{f' ({variant.name})' if variant.name else ''}"
                    raise ValueError(f"{what} in {env_name}: {error}") from error
                jobs |= {(job.resolved.settings.seed, job.name): job for job in made}
    order = {seed: place for place, seed in enumerate(study.seeds)}
    return sorted(jobs.values(), key=lambda job: order[job.resolved.settings.seed])


def read_state(job: Job, queued: Collection[str] = ()) -> tuple[State, str]:
    """How a job stands, and why it failed or is damaged, if it is.

    Args:
      job: one of a sweep.
      queued: names of the jobs that SLURM has in its queue.

    Raises:
      ValueError: if the job's folder holds a run of another config; says what differs.
    """
    try:
        _check_folders(job)
    except (DamagedError, OSError) as error:
        return State.DAMAGED, str(error)
    if last_step(job) >= job.total_steps:
        return State.FINISHED, ""
    if any(is_held(folder / LOCK) for folder in job.folders):
        return State.RUNNING, ""
    if job.name in queued:
        return State.QUEUED, ""
    error = _recorded_error(job.task.record)
    if error:
        return State.FAILED, error
    begun = any(folder.exists() for folder in job.folders)
    return (State.UNFINISHED if begun else State.NEW), ""


def last_step(job: Job) -> int:
    """The step of the newest checkpoint, of the run that is least far; 0 if there is none."""
    return min(map(_last_step, job.folders))


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a run's file of metrics; none if there is no such file, or it is damaged."""
    try:
        return read_csv(path)
    except (ValueError, TypeError, OSError):
        return []


def resolve(method: str, options: Sequence[str]) -> Resolved:
    """What `train_offline.py --config=<method> <options>` comes to.

    Raises:
      ValueError: if it would refuse them; says why.
    """
    values = flags.FlagValues()
    define_flags(RunSettings, values)
    arguments = ["train_offline.py", *options]
    try:
        config_flags.DEFINE_config_dict(
            "config", agents.get_config(method), flag_values=values, sys_argv=arguments
        )
        rest = values(arguments)[1:]
    except (AttributeError, KeyError) as error:  # from ml_collections
        raise ValueError(unknown_field(error, options) or str(error)) from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected arguments {rest}; flags look like --name=value.")
    resolved = resolve_flags(values)
    check_settings(resolved.settings)
    agents.make_agent(resolved.config)
    return resolved


def _check_folders(job: Job) -> None:
    """Raises ValueError if a folder of the job holds another run."""
    settings, config, _ = job.resolved
    for index, folder in enumerate(job.folders):
        own = {"seed": settings.seed + index, "run_id": folder.name, "num_seeds": 1}
        differences = differences_from(folder, dataclasses.replace(settings, **own), config)
        if differences:
            raise ValueError(
                f"{folder} holds a run of another config: {'; '.join(differences)}. Give another "
                "--group, or what it was started with."
            )


def _recorded_error(path: Path) -> str:
    """Why the job failed when it was last executed; empty if it did not, or nothing tells."""
    try:
        record = read_json(path)
    except (DamagedError, OSError):
        return ""
    return record.get("error", "") if isinstance(record, dict) else ""


def _make_jobs_of_seeds(
    method: str,
    variant: Variant,
    options: dict[str, Any],
    groups: Iterable[Sequence[int]],
    script: Path,
) -> list[Job]:
    resolved = resolve(method, _written(options))
    if not resolved.settings.preset:  # which knows its environments
        _check_env(resolved.settings.env_name, resolved.settings.env_module)
    config = _config_file(method, script)
    base, jobs = "-".join(filter(None, [method, variant.name])), []
    for seeds in groups:
        run_ids = [f"{base}-seed{seed}" for seed in seeds]
        own, name = {"seed": seeds[0], "run_id": run_ids[0]}, run_ids[0]
        if len(seeds) > 1:  # `train_seeds` adds the seeds to the run's id
            own = {"seed": seeds[0], "num_seeds": len(seeds), "run_id": base}
            name = f"{run_ids[0]}-{seeds[-1]}"
        settings = dataclasses.replace(resolved.settings, **own)
        check_settings(settings)
        folders = tuple(
            folder_of(dataclasses.replace(settings, run_id=run_id), resolved.config)
            for run_id in run_ids
        )
        command = (sys.executable, str(script), f"--config={config}", *_written({**options, **own}))
        name = f"{folders[0].parent.name}/{name}"
        jobs.append(Job(name, command, resolved._replace(settings=settings), folders))
    return jobs


def _config_file(method: str, script: Path) -> Path:
    """What `--config` names: for a module of one's own, which has its config, the module."""
    if method in agents.algorithm_names():
        return script.parent / "configs" / f"{method}.py"
    return Path(inspect.getfile(importlib.import_module(method)))


def _consecutive(seeds: Sequence[int], most: int) -> list[list[int]]:
    """The seeds in groups of consecutive ones, of at most so many."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1 and len(groups[-1]) < most:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _last_step(folder: Path) -> int:
    checkpoints = folder / "checkpoints"
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


@functools.cache
def _check_env(env_name: str, env_module: str) -> None:
    """Raises ValueError if there is no such environment."""
    make_env(env_name, env_module).close()


def _fitting(method: str, study: Study, options: dict[str, Any]) -> dict[str, Any]:
    """The flags without those of fields that only other methods of the study have."""
    own = _field_flags(method)
    others = set().union(*(_field_flags(other) for other in study.methods))
    return {name: value for name, value in options.items() if name in own or name not in others}


@functools.cache
def _field_flags(method: str) -> frozenset[str]:
    return frozenset(f"config.{name}" for name in agents.get_config(method))


def _scaled(method: str, options: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """The flags of the config fields that a variant multiplies."""
    if not variant.scale:
        return {}
    config = resolve(method, _written(options)).config
    fields = {}
    for flag, factor in variant.scale.items():
        field = flag.removeprefix("config.")
        if field == flag or not isinstance(config.get(field), int | float):
            raise ValueError(f"scale: {flag!r} is no number of the config of {method!r}.")
        fields[flag] = float(f"{config[field] * factor:.12g}")
    return fields


def _written(options: dict[str, Any]) -> list[str]:
    return [
        f"--{name}" if value is None else f"--{name}={flag_text(value)}"
        for name, value in options.items()
    ]


def _split(flag: str) -> tuple[str, str | None]:
    """Name and value of `--name=value`; of `--name` there is no value."""
    if not flag.startswith("-"):
        raise ValueError(f"unexpected argument {flag!r}: flags of the runs look like --name=value.")
    name, equals, value = flag.lstrip("-").partition("=")
    return name, value if equals else None


def _check_names(study: Study, extra: dict[str, Any]) -> None:
    varied = {name for variant in study.variants for name in (*variant.flags, *variant.scale)}
    for name in (*extra, *study.flags, *varied):
        if name in _OF_THE_SWEEP:
            raise ValueError(
                f"--{name} is what the sweep itself gives its runs: see {_OF_THE_SWEEP[name]}."
            )
        if name in extra and name in varied:
            raise ValueError(f"--{name} is what the study's variants differ in: leave it out.")
