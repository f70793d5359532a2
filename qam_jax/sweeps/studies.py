"""What a sweep consists of: named studies, files of one's own, and choices among their runs."""

import dataclasses
import fnmatch
import itertools
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from qam_jax.agents import algorithm_names, get_config
from qam_jax.runs.presets import paper_methods

_NAMED = resources.files(__package__) / "named"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to change the runs of a study.

    Attributes:
      name: what it is called in the names of runs; empty for runs as they are.
      flags: of `train_offline.py`, without dashes, with their values.
      scale: config fields as flags, and what their values are multiplied with.
    """

    name: str = ""
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    scale: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of every method in every environment with every seed in every variant.

    Attributes:
      name: of the study.
      methods: names of algorithms.
      env_names: of the environments.
      seeds: of the runs.
      description: in a sentence.
      group: the folder of its runs.
      preset: that its runs take, or empty.
      flags: that all its runs take.
      variants: at least one.
    """

    name: str
    methods: tuple[str, ...]
    env_names: tuple[str, ...]
    seeds: tuple[int, ...]
    description: str = ""
    group: str = ""
    preset: str = ""
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    variants: tuple[Variant, ...] = (Variant(),)


def study_names() -> list[str]:
    """The named studies."""
    return sorted(entry.name.removesuffix(".toml") for entry in _NAMED.iterdir())


def load_study(name: str) -> Study:
    """Reads a named study, or a file of one's own.

    Args:
      name: one of `study_names`, or the path of a `.toml` file.

    Raises:
      ValueError: if there is no such study, or the file is not one; says what is wrong.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).expanduser().read_text()
        except OSError as error:
            raise ValueError(f"cannot read the study {name!r}: {error.strerror}.") from error
        return parse_study(Path(name).stem, text)
    return parse_study(name, _named_text(name))


def parse_study(name: str, text: str) -> Study:
    """A study from the text of its file: the fields of `make_study`, or some of them, and in
    `like` the named study that has the others.

    Raises:
      ValueError: if it is not one; says what is wrong.
    """
    try:
        content = tomllib.loads(text)
        while "like" in content:
            content = {**tomllib.loads(_named_text(content.pop("like"))), **content}
        return make_study(name, **content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the study {name!r}: {_plainly(error)}") from error


def make_study(
    name: str,
    *,
    methods: Sequence[str] | str,
    seeds: Sequence[int] | int,
    env_names: Sequence[str] = (),
    domains: Sequence[str] = (),
    tasks: Sequence[int] = (1, 2, 3, 4, 5),
    description: str = "",
    group: str = "",
    preset: str = "",
    flags: dict[str, Any] | None = None,
    grid: dict[str, Sequence[Any]] | None = None,
    variants: Iterable[dict[str, Any]] = ({},),
) -> Study:
    """A study from the fields of its file.

    Args:
      name: of the study.
      methods: names of algorithms, modules of one's own among them, or `all` of this package.
      seeds: or how many, counted from 0.
      env_names: environments by their full names, beside those of `domains`.
      domains: such as `cube-double-play`, of which all `tasks` are taken.
      tasks: numbers from 1 to 5.
      description: in a sentence.
      group: the folder of its runs; the study's name if it is empty.
      preset: that its runs take.
      flags: that all its runs take, with their values.
      grid: flags with several values each, all combinations of which are variants.
      variants: `name`, `flags` and `scale` of each; combined with the grid.

    Raises:
      ValueError: if a name, number or type is not one that is expected.
    """
    if isinstance(seeds, int):
        seeds = range(seeds)
    study = Study(
        name=name,
        methods=_method_names(methods, preset),
        env_names=_env_names(env_names, domains, tasks),
        seeds=tuple(_listed("seeds", seeds, int)),
        description=description,
        group=group or name,
        preset=preset,
        flags=_flags("flags", flags or {}),
        variants=tuple(_combine(variants, grid or {})),
    )
    for field in ("methods", "env_names", "seeds"):
        if not getattr(study, field):
            what = "domains or env_names" if field == "env_names" else field
            raise ValueError(f"no {what}: there would be no run.")
    names = [variant.name for variant in study.variants]
    if len(set(names)) < len(names):
        raise ValueError(f"the names of variants must differ, got {names}.")
    return study


def choose(
    study: Study,
    *,
    methods: Sequence[str] = (),
    domains: Sequence[str] = (),
    tasks: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> Study:
    """The part of a study with these methods, domains, tasks and seeds; all, where none is given.

    Args:
      study: to choose from.
      methods: names; `*` and `?` stand for any characters.
      domains: likewise; the part of the environments' names before `-singletask`.
      tasks: numbers.
      seeds: numbers.

    Raises:
      ValueError: if the study does not have one of them; says what it has.
    """
    env_names = _matching("domains", study.env_names, domains, _domain, fnmatch.fnmatch)
    env_names = _matching("tasks", env_names, tasks, _task, int.__eq__)
    return dataclasses.replace(
        study,
        methods=_matching("methods", study.methods, methods, str, fnmatch.fnmatch),
        env_names=env_names,
        seeds=_matching("seeds", study.seeds, seeds, int, int.__eq__),
    )


def parse_numbers(text: str) -> list[int]:
    """Numbers such as `0-3,7`. Raises ValueError, naming what is not one."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f"expected numbers such as 0-3,7, got {text!r}.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(
                f"expected numbers such as 0-3,7, got {text!r}: {part} runs backwards."
            )
        numbers += range(first, last + 1)
    return numbers


def flag_text(value: Any) -> str:
    """A value as it is written behind `--flag=`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"({', '.join(map(flag_text, value))},)"
    return str(value)


def _named_text(name: str) -> str:
    if name not in study_names():
        raise ValueError(
            f"there is no study {name!r}: there are {', '.join(study_names())}, or give the path "
            "of a .toml file of your own."
        )
    return (_NAMED / f"{name}.toml").read_text()


def _method_names(methods: Sequence[str] | str, preset: str) -> tuple[str, ...]:
    """The names; `all` are those of the package, or those that the preset knows."""
    everything = paper_methods() if preset else algorithm_names()
    names = everything if methods == "all" else _listed("methods", methods, str)
    for name in names:
        get_config(name)  # raises, if there is none
    return tuple(names)


def _env_names(
    env_names: Sequence[str], domains: Sequence[str], tasks: Sequence[int]
) -> tuple[str, ...]:
    """Environments by their names, then all tasks of the domains, each once."""
    tasks = _listed("tasks", tasks, int)
    if not set(tasks) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"tasks are numbers from 1 to 5, got {tasks}.")
    of_domains = [
        f"{domain}-singletask-task{task}-v0"
        for domain in _listed("domains", domains, str)
        for task in tasks
    ]
    return tuple(dict.fromkeys([*_listed("env_names", env_names, str), *of_domains]))


def _listed(name: str, values: Any, kind: type) -> list[Any]:
    if isinstance(values, str) or not all(type(value) is kind for value in values):
        expected = {str: "names", int: "whole numbers"}[kind]
        raise ValueError(f"{name} must be a list of {expected}, got {values!r}.")
    return list(dict.fromkeys(values))


def _flags(name: str, flags: Any) -> dict[str, Any]:
    """Flags with their values, from nested tables too: TOML reads `config.lr` as one."""
    if not isinstance(flags, dict):
        raise ValueError(f"{name} must be a table of flags and values, got {flags!r}.")
    found: dict[str, Any] = {}
    for flag, value in flags.items():
        if isinstance(value, dict):
            found |= {f"{flag}.{field}": each for field, each in _flags(name, value).items()}
        else:
            found[flag] = value
    return found


def _combine(variants: Iterable[Any], grid: dict[str, Any]) -> list[Variant]:
    grid = _flags("grid", grid)
    for flag, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"grid: {flag} must have a list of values, got {values!r}.")
    combined = []
    for variant in variants:
        if not isinstance(variant, dict):
            raise ValueError(f"a variant is a table with name, flags and scale, got {variant!r}.")
        unknown = variant.keys() - {field.name for field in dataclasses.fields(Variant)}
        if unknown:
            raise ValueError(
                f"a variant has name, flags and scale, got {', '.join(sorted(unknown))} as well."
            )
        base = Variant(
            variant.get("name", ""),
            _flags("flags", variant.get("flags", {})),
            _flags("scale", variant.get("scale", {})),
        )
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            parts = [f"{flag.rpartition('.')[2]}={_short(v)}" for flag, v in chosen.items()]
            name = "-".join(filter(None, [base.name, *parts]))
            combined.append(Variant(name, {**base.flags, **chosen}, base.scale))
    return combined


def _short(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list | tuple):
        return "x".join(map(_short, value))
    return re.sub(r"[^\w.+-]+", "_", flag_text(value))


def _matching(
    name: str,
    values: Sequence[Any],
    wanted: Sequence[Any],
    key: Callable[[Any], Any],
    equal: Callable[[Any, Any], bool],
) -> tuple[Any, ...]:
    for want in wanted:
        if not any(equal(key(value), want) for value in values):
            there = ", ".join(dict.fromkeys(str(key(value)) for value in values))
            raise ValueError(f"--{name}: the study has no {want!r}; it has {there}.")
    if not wanted:
        return tuple(values)
    return tuple(value for value in values if any(equal(key(value), want) for want in wanted))


def _domain(env_name: str) -> str:
    return env_name.partition("-singletask")[0]


def _task(env_name: str) -> int:
    """The number of the task; 0 of an environment without one."""
    match = re.search(r"-task(\d)-", env_name)
    return int(match[1]) if match else 0


def _plainly(error: Exception) -> str:
    """A message that speaks of fields, where Python speaks of arguments."""
    message = str(error).removeprefix("make_study() ")
    message = message.replace("got an unexpected keyword argument", "there is no field")
    return re.sub(r"missing \d+ required keyword-only arguments?:", "it lacks", message)
