"""Studies: the runs of a sweep. Named ones, files of your own, and choices among their runs."""

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

from flax.traverse_util import flatten_dict

from qam_jax.agents import algorithm_names, get_config
from qam_jax.data.tasks import find_task
from qam_jax.files import user_path
from qam_jax.runs.presets import paper_methods

_NAMED = resources.files(__package__) / "named"
_MOST_SEEDS = 10**5  # of a study


@dataclasses.dataclass(frozen=True)
class Variant:
    """A change to the runs of a study."""

    name: str = ""  # part of the names of its runs; empty for unchanged runs
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)  # of train_offline.py
    scale: dict[str, float] = dataclasses.field(default_factory=dict)  # factors of fields' values


@dataclasses.dataclass(kw_only=True)
class Study:
    """A run for every combination of method, environment, seed and variant.

    The arguments are the fields of a study's file. Raises ValueError if one has a wrong type or
    value.
    """

    name: str
    methods: Sequence[str] = ()  # of this package or your own modules; "all": all of the preset
    seeds: Sequence[int] = ()  # or a number of seeds from 0
    env_names: Sequence[str] = ()  # full names
    domains: InitVar[Sequence[str]] = ()  # more environments, such as cube-double-play
    tasks: InitVar[Sequence[int]] = (1, 2, 3, 4, 5)  # of the domains
    description: str = ""  # one sentence
    group: str = ""  # folder of the runs; by default the study's name
    preset: str = ""  # of all runs
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)  # of all runs
    grid: InitVar[dict[str, Any] | None] = None  # values of flags; each combination is a variant
    variants: Sequence[Any] = (Variant(),)  # tables of fields; each is combined with the grid

    def __post_init__(self, domains: Any, tasks: Any, grid: Any) -> None:
        if self.methods == "all":
            self.methods = paper_methods() if self.preset else algorithm_names()
        if type(self.seeds) is int:
            if self.seeds > _MOST_SEEDS:
                raise ValueError(f"seeds must be at most {_MOST_SEEDS:,}, got {self.seeds}.")
            self.seeds = range(self.seeds)
        self.methods = _checked("methods", self.methods, str)
        self.seeds = _checked("seeds", self.seeds, int)
        tasks = _checked("tasks", tasks, int)
        if not set(tasks) <= {1, 2, 3, 4, 5}:
            raise ValueError(f"tasks are numbers from 1 to 5, got {list(tasks)}.")
        places = itertools.product(_checked("domains", domains, str), tasks)
        names = [f"{domain}-singletask-task{task}-v0" for domain, task in places]
        names = [*_checked("env_names", self.env_names, str), *names]
        self.env_names = tuple(dict.fromkeys(names))
        self.group = self.group or self.name
        self.flags = _flatten("flags", self.flags)
        self.variants = _combine(self.variants, _flatten("grid", grid or {}))
        for method in self.methods:
            get_config(method)  # raises ValueError for an unknown method
        given = {"methods": self.methods, "domains or env_names": names, "seeds": self.seeds}
        for field, values in given.items():
            if not values:
                raise ValueError(f"no {field}: there would be no run.")


def study_names() -> list[str]:
    """Names of the studies in this package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _NAMED.iterdir())


def load_study(name: str) -> Study:
    """Reads one of `study_names`, or a `.toml` file. Raises ValueError if it is no valid study."""
    if not name.endswith(".toml"):
        return parse_study(name, _named_text(name))
    path = user_path(name)
    try:
        return parse_study(path.stem, path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(f"cannot read the study {name!r}: {reason}.") from error


def parse_study(name: str, text: str) -> Study:
    """Parses the file of a study, which holds arguments of `Study`. Raises ValueError if not.

    The field `like` names a study that provides the fields which the file leaves out.
    """
    try:
        content = tomllib.loads(text)
        while "like" in content:
            content = {**tomllib.loads(_named_text(content.pop("like"))), **content}
        known = Study.__annotations__
        for field in content:
            if field not in known:
                raise ValueError(f"there is no field {field!r}; there are {', '.join(known)}.")
        return Study(name=name, **content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the study {name!r}: {error}") from error


def choose(
    study: Study,
    *,
    methods: Sequence[str] = (),
    domains: Sequence[str] = (),
    tasks: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> Study:
    """Selects runs of a study. An empty argument selects everything.

    In methods and domains, `*` and `?` stand for any characters. A domain is the part of an
    environment's name before `-singletask`. Raises ValueError, listing what the study has, if it
    has nothing of a chosen name.
    """
    domain = {name: getattr(find_task(name), "domain", name) for name in study.env_names}
    number = {name: getattr(find_task(name), "number", None) for name in study.env_names}
    env_names = _select("domains", study.env_names, domains, domain.get)
    return dataclasses.replace(
        study,
        methods=_select("methods", study.methods, methods),
        env_names=_select("tasks", env_names, tasks, number.get),
        seeds=_select("seeds", study.seeds, seeds),
    )


def parse_numbers(text: str) -> list[int]:
    """Parses numbers such as `0-3,7`. Raises ValueError if the text has another form."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first:
            raise ValueError(f"expected numbers and ranges upwards, such as 0-3,7, got {text!r}.")
        if last - first >= _MOST_SEEDS:
            raise ValueError(f"expected at most {_MOST_SEEDS:,} numbers, got {text!r}.")
        numbers += range(first, last + 1)
    return numbers


def flag_text(value: Any) -> str:
    """Formats a value for `--flag=<value>`."""
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


def _checked(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    """The values without repetitions. Raises ValueError unless all have the type `kind`."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(type(value) is kind for value in values):
        expected = {str: "names", int: "whole numbers"}[kind]
        raise ValueError(f"{name} must be a list of {expected}, got {values!r}.")
    return tuple(dict.fromkeys(values))


def _flatten(name: str, flags: Any) -> dict[str, Any]:
    """Flags with their values, from nested tables too: TOML reads `config.lr` as one."""
    if not isinstance(flags, dict):
        raise ValueError(f"{name} must be a table of flags and values, got {flags!r}.")
    return flatten_dict(flags, sep=".")


def _combine(tables: Iterable[Any], grid: dict[str, Any]) -> tuple[Variant, ...]:
    """Variants from their tables, each with every combination of the grid's values."""
    for flag, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"grid: {flag} must have a list of values, got {values!r}.")
    variants = {}
    names = []
    for table, values in itertools.product(tables, itertools.product(*grid.values())):
        try:
            base = table if isinstance(table, Variant) else Variant(**table)
        except TypeError as error:
            raise ValueError(
                f"a variant is a table with name, flags and scale, got {table!r}."
            ) from error
        chosen = dict(zip(grid, values, strict=True))
        parts = [f"{flag.rpartition('.')[2]}={_short(value)}" for flag, value in chosen.items()]
        names.append("-".join(filter(None, [base.name, *parts])))
        flags = {**_flatten("flags", base.flags), **chosen}
        variants[names[-1]] = Variant(names[-1], flags, _flatten("scale", base.scale))
    if len(variants) < len(names):
        raise ValueError(f"the names of variants must differ, got {names}.")
    return tuple(variants.values())


def _short(value: Any) -> str:
    """Formats a value for the name of a folder."""
    if isinstance(value, list | tuple):
        return "x".join(map(_short, value))
    return re.sub(r"[^\w.+-]+", "_", flag_text(value))


def _select(
    flag: str, values: Sequence[Any], wanted: Sequence[Any], key: Callable[[Any], Any] = str
) -> tuple[Any, ...]:
    """The values whose `key` matches one of the patterns or numbers; all, without any."""
    names = [str(key(value)) for value in values]
    for want in wanted:
        if not any(fnmatchcase(name, str(want)) for name in names):
            there = ", ".join(dict.fromkeys(names))
            raise ValueError(f"--{flag}: the study has no {want!r}; it has {there}.")
    matches = [not wanted or any(fnmatchcase(name, str(w)) for w in wanted) for name in names]
    return tuple(itertools.compress(values, matches))
