"""Settings of a run: every setting outside the algorithm's config, with its help and its role."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from qam_jax.data.normalization import NORMALIZATIONS

ROLES = {
    "result": "changes what is learnt: fixed for a run, and part of the method in reports",
    "schedule": "how long to train: may grow on continuing, part of the method in reports",
    "online": "shapes fine-tuning alone: may change until fine-tuning begins",
    "run": "tells runs of one method apart: fixed for a run, not part of the method in reports",
    "free": "where and how a run is executed: may change whenever the run is continued",
}
"""What a setting means for the identity of a run; every list of settings derives from it."""


def _setting(
    role: str,
    default: Any,
    help_text: str,
    low: int | None = None,
    high: int | None = None,
    *,
    choices: tuple[str, ...] = (),
    inherited: bool = True,
    later: bool = False,
) -> Any:
    """Declares a setting: its role, default, help, range, and the values that it can take.

    A run that starts from another run's checkpoint takes over the value if it is `inherited`. With
    `later`, version 0.1 did not have it: the default does not change a run's folder.
    """
    metadata: dict[str, Any] = {"help": help_text, "role": role, "low": low, "high": high}
    metadata |= {"choices": choices, "inherited": inherited, "later": later}
    return dataclasses.field(default=default, metadata=metadata)


_result, _schedule, _online, _run, _free = (functools.partial(_setting, role) for role in ROLES)
_process = functools.partial(_setting, "")  # of no run


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the data come from."""

    dataset: str = _result(
        "",
        "Your own .npz file, a folder of them, minari:<id>, robomimic:<file> or lerobot:<folder>; "
        "empty: OGBench's of env_name.",
    )
    obs_keys: str = _result(
        "",
        "Parts of an observation of robomimic or LeRobot, comma-separated, in this order; empty: "
        "all vectors of robomimic, LeRobot's state.",
        later=True,
    )
    demos: str = _result(
        "",
        "Mask of robomimic, or task of LeRobot, whose episodes are used; empty: all.",
        later=True,
    )
    success: str = _result(
        "",
        "Where robomimic's or LeRobot's episodes complete the task: reward (a reward of 1), last, "
        "none, or a column that is 1 there; empty: reward of robomimic, next.success of LeRobot.",
        later=True,
    )
    dataset_dir: str = _free("~/.ogbench/data", "Folder of OGBench's dataset files.")
    data_source: str = _free(
        "auto",
        "local: only dataset_dir; download: from a mirror; generate: simulate it; "
        "auto: the first of these that works.",
        choices=("auto", "local", "download", "generate"),
    )
    mirrors: str = _free("", "Comma-separated URLs of folders to download from, tried first.")
    ogbench_dataset_dir: str = _free(
        "", "Folder of shards, .npz files of which one at a time is trained on."
    )
    dataset_replace_interval: int = _result(
        1000, "Steps until the next shard of ogbench_dataset_dir; 0: only the first is used.", 0
    )
    dataset_proportion: float = _result(1.0, "Leading part of each file that is used.")
    sparse: bool = _result(False, "Make every reward that is not 0 a -1.")
    reward_scale: float = _result(
        1.0, "Train on scale * r + bias for each reward r, after sparse.", later=True
    )
    reward_bias: float = _result(0.0, "See reward_scale.", later=True)
    normalize_observations: str = _result(
        "",
        "By statistics of the data: mean_std, to mean 0 and deviation 1; min_max, to [-1, 1]; "
        "quantiles, the 1st and 99th percentile to -1 and 1; empty: not.",
        choices=NORMALIZATIONS,
        later=True,
    )
    normalize_actions: str = _result(
        "",
        "As normalize_observations, but not mean_std. Actions are clipped to [-1, 1].",
        choices=NORMALIZATIONS,
        later=True,
    )


@dataclasses.dataclass(frozen=True)
class RunSettings(DataSettings):
    """A run: behaviour cloning, then offline training, then fine-tuning online."""

    env_name: str = _result(
        "pointmaze-medium-navigate-singletask-v0",
        "OGBench's single-task name, or id of a gymnasium environment; empty: train on data alone.",
    )
    env_module: str = _result("", "Module to import, which registers env_name with gymnasium.")
    seed: int = _run(0, "Seed of networks, batches, noise and episodes.", 0, 2**31 - 1)
    num_seeds: int = _free(
        1, "Runs in one program, of the seeds from --seed on, each in its own folder.", 1, 10**4
    )
    num_devices: int = _free(
        1, "Devices to spread seeds, then batches over; 0: all that this process sees.", 0, 10**6
    )
    bc_steps: int = _result(
        0, "Updates of behaviour cloning alone, whose flow the other stages start from.", 0
    )
    offline_steps: int = _schedule(1_000_000, "Updates on the dataset.", 0)
    online_steps: int = _free(0, "Environment steps of fine-tuning after that.", 0, inherited=False)
    start_training: int = _online(
        5000,
        "Environment steps before the first online update; of an agent without training, with "
        "random actions.",
        0,
    )
    utd_ratio: int = _online(1, "Updates per environment step.", 1, 10**4)
    num_envs: int = _online(1, "Environments that gather experience side by side.", 1, 10**4)
    balanced_sampling: bool = _online(
        False, "Half of each online batch from the dataset, as by --offline_ratio=0.5."
    )
    offline_ratio: float = _online(
        -1.0,
        "Share of each online batch that comes from the dataset, in [0, 1], whatever "
        "balanced_sampling; -1: draw from data and experience as from one.",
    )
    buffer_size: int = _online(0, "Online transitions kept for training; 0: all.", 0, 2**31 - 1)
    log_interval: int = _run(1000, "Steps per row of train.csv.", 1)
    eval_interval: int = _run(50_000, "Steps between evaluations; a multiple of log_interval.", 1)
    save_interval: int = _run(50_000, "Steps between checkpoints; a multiple of log_interval.", 1)
    keep_checkpoints: int = _free(2, "Newest checkpoints that are kept, beside the best.", 1, 10**6)
    eval_episodes: int = _run(50, "Episodes of an evaluation.", 1, 10**6)
    overlap_evaluation: bool = _free(
        False,
        "Train on during evaluations of the offline stage: where an accelerator would idle "
        "meanwhile, or there are more processors than the updates keep busy; not where several "
        "processes train together.",
    )
    eval_envs: int = _free(
        0, "Environments evaluated side by side; 0: twice the processors.", 0, 10**4
    )
    strict_evaluation: bool = _free(
        False, "Stop where an evaluation fails; else that is said and counted, and the run goes on."
    )
    max_env_crashes: int = _free(10, "Crashes of environments that a run endures.", 0, 10**6)
    env_timeout: int = _free(
        60,
        "Seconds in which an environment has to start, to reset, or to execute a chunk of actions; "
        "more count as a crash.",
        1,
        10**6,
    )
    video_episodes: int = _free(
        0, "Episodes filmed at the end of the run.", 0, 10**4, inherited=False
    )
    run: str = _run("", "Folder of the run whose checkpoint this one starts from.", inherited=False)
    run_step: str = _run(
        "newest", "Which checkpoint of --run: a step, newest or best.", inherited=False
    )
    save_dir: str = _free("exp", "Folder of all runs.", inherited=False)
    group: str = _free("default", "Folder of related runs, inside save_dir.", inherited=False)
    preset: str = _free(
        "",
        "paper: the paper's settings and hyperparameters, by method and env_name, for all flags "
        "that are not given.",
    )
    run_id: str = _free(
        "", "Name of the run's folder; empty: made of algorithm, seed, config.", inherited=False
    )
    compilation_cache_dir: str = _free(
        "~/.cache/qam_jax", "Folder of compiled programs, shared by all runs; empty: none."
    )
    wandb_project: str = _free("", "Weights & Biases project to log to; empty: none.")

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return self.bc_steps + self.offline_steps + self.online_steps

    @property
    def offline_share(self) -> float | None:
        """Share of each online batch from the dataset; None to draw from both as from one."""
        if self.offline_ratio == -1:
            return 0.5 if self.balanced_sampling else None
        return self.offline_ratio

    def of_seed(self, index: int) -> "RunSettings":
        """Settings of the run of one seed, from 0 to `num_seeds` - 1, as it would be alone."""
        seed, run_id = self.seed + index, self.run_id
        if run_id and self.num_seeds > 1:
            run_id = f"{run_id}-seed{seed}"
        return dataclasses.replace(self, seed=seed, run_id=run_id, num_seeds=1)


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """Processes that train together; by default a process trains alone."""

    distributed: bool = _process(
        False,
        "Train together with the processes of this TPU slice, SLURM job or other cluster that "
        "JAX detects; takes --num_devices=0.",
    )
    coordinator_address: str = _process(
        "", "host:port of process 0, which all reach; with num_processes and process_id, by hand."
    )
    num_processes: int = _process(0, "Processes that train together, where given by hand.", 0)
    process_id: int = _process(-1, "Number of this process, from 0, where given by hand.", -1)
    start_timeout: int = _process(300, "Seconds in which all processes have to come together.", 1)
    heartbeat_timeout: int = _process(
        100, "Seconds without a sign of a process after which JAX ends the others.", 1
    )


def names_with_role(*roles: str) -> frozenset[str]:
    """Returns the names of a run's settings that have one of these `ROLES`."""
    fields = dataclasses.fields(RunSettings)
    return frozenset(field.name for field in fields if field.metadata["role"] in roles)


def define_flags(settings_class: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag in `values` for each field of a settings class."""
    define: dict[Any, Callable[..., Any]] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(settings_class):
        default: Any = field.default
        text = field.metadata["help"]
        if field.metadata["choices"]:
            choices = list(field.metadata["choices"])
            flags.DEFINE_enum(field.name, default, choices, text, flag_values=values)
        else:
            define[field.type](field.name, default, text, flag_values=values)


def from_flags(settings_class: type, values: flags.FlagValues, **defaults: Any) -> Any:
    """Makes the settings of a class, whose flags `define_flags` has defined, from parsed flags.

    The `defaults` take the place of the class's for flags that the command line left out.
    """
    names = [field.name for field in dataclasses.fields(settings_class)]
    given = {name: values[name].value for name in names}
    left_out = {name: defaults[name] for name in defaults if not values[name].present}
    return settings_class(**given | left_out)


def check_settings(settings: RunSettings) -> None:
    """Raises ValueError for settings that make no sense; names the setting and the remedy."""
    check_ranges(settings)
    for name in ("eval_interval", "save_interval"):
        value = getattr(settings, name)
        if value % settings.log_interval:
            raise ValueError(
                f"--{name} must be a multiple of --log_interval ({settings.log_interval}), "
                f"got {value}; the one below is {value - value % settings.log_interval}."
            )
    for name in ("group", "run_id"):
        value = getattr(settings, name)
        if value in (".", "..") or "/" in value or "\\" in value:
            raise ValueError(f"--{name} must be the name of one folder, got {value!r}.")
    if settings.seed + settings.num_seeds > 2**31:
        raise ValueError(
            f"the last of the {settings.num_seeds} seeds (--num_seeds) from --seed="
            f"{settings.seed} on would be above {2**31 - 1}: give a smaller --seed."
        )
    if settings.num_seeds > 1 and settings.wandb_project:
        raise ValueError(
            "--wandb_project logs one run per process: leave it out, or start the "
            f"{settings.num_seeds} seeds one by one."
        )
    if settings.total_steps < 1:
        raise ValueError("nothing to do: give --offline_steps, --online_steps or --bc_steps.")
    if settings.total_steps >= 2**31:
        raise ValueError(
            f"--offline_steps, --online_steps and --bc_steps are {settings.total_steps} together: "
            f"give at most {2**31 - 1}."
        )
    _check_data(settings)
    _check_environment(settings)


def check_ranges(settings: Any) -> None:
    """Raises ValueError, naming the setting, if a value is out of its range."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        low, high = field.metadata["low"], field.metadata["high"]
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise ValueError(f"--{field.name} must be one of {list(choices)}, got {value!r}.")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise ValueError(f"--{field.name} must be {bounds}, got {value}.")


def _check_data(settings: RunSettings) -> None:
    if settings.dataset and (settings.data_source != "auto" or settings.mirrors):
        raise ValueError(
            "--dataset names data of your own; --data_source and --mirrors are for OGBench's: "
            "give one or the other."
        )
    if settings.dataset and settings.ogbench_dataset_dir:
        raise ValueError(
            "--dataset is loaded as a whole, --ogbench_dataset_dir one shard at a time: give one "
            "of them."
        )
    chosen = [name for name in ("obs_keys", "demos", "success") if getattr(settings, name)]
    if chosen and not settings.dataset.startswith(("robomimic:", "lerobot:")):
        raise ValueError(
            f"--{chosen[0]} chooses within --dataset=robomimic:<file> or lerobot:<folder>, got "
            f"--dataset={settings.dataset or '(none)'}: leave it out, or name such data."
        )
    if not 0 < settings.dataset_proportion <= 1:
        raise ValueError(
            "--dataset_proportion must be above 0 and at most 1, got "
            f"{settings.dataset_proportion}."
        )
    if settings.normalize_actions == "mean_std":
        raise ValueError(
            "--normalize_actions=mean_std would put actions outside [-1, 1], which policies cannot "
            "leave: give min_max or quantiles."
        )
    if not 0 < settings.reward_scale < math.inf:
        raise ValueError(f"--reward_scale must be a number above 0, got {settings.reward_scale}.")
    if not math.isfinite(settings.reward_bias):
        raise ValueError(f"--reward_bias must be a number, got {settings.reward_bias}.")
    if settings.offline_ratio != -1 and not 0 <= settings.offline_ratio <= 1:
        raise ValueError(f"--offline_ratio must be in [0, 1], or -1, got {settings.offline_ratio}.")


def _check_environment(settings: RunSettings) -> None:
    if settings.env_name:
        return
    if settings.online_steps:
        raise ValueError(
            f"--online_steps={settings.online_steps} needs an environment to act in, but "
            "--env_name is empty: name one, or set --online_steps=0."
        )
    if not settings.dataset and not settings.ogbench_dataset_dir:
        raise ValueError(
            "without an environment (--env_name is empty) there is no OGBench dataset: name data "
            "of your own by --dataset."
        )
    if settings.video_episodes:
        raise ValueError("--video_episodes needs an environment, but --env_name is empty.")


def resolved(settings: RunSettings, agent_config: ConfigDict) -> dict[str, Any]:
    """Returns all settings and the algorithm's config, as config.json holds them."""
    return {**dataclasses.asdict(settings), "agent": agent_config.to_dict()}
