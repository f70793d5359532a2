"""Where a run's settings depart from the paper's, so that a comparison is not misread.

The paper's settings are those of `qam_jax.runs.presets.paper`, and for all that it leaves alone the
defaults of each algorithm's config and of `RunSettings`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qam_jax.reports.labels import agent_name, method_name, parse_task
from qam_jax.reports.published import published_results
from qam_jax.runs import presets
from qam_jax.runs.settings import RunSettings

# Which settings count, by kind. Of the agent's, all others are hyperparameters.
_BUDGET = ("bc_steps", "offline_steps", "batch_size")
_ONLINE_BUDGET = ("online_steps", "start_training", "utd_ratio")
_NETWORKS = "actor_hidden_dims actor_layer_norm critic_hidden_dims critic_layer_norm num_qs".split()
_DATA = ("dataset", "dataset_proportion", "dataset_replace_interval", "sparse")
_SIMULATED = re.compile(r"\(simulated: (\d+) episodes")

# The settings of the sensitivity study, one at a time, by the name of the table's method.
_VARIANTS = {
    "QAM-E-NOCLIP": ("clip_grad_norm", 0),
    "QAM-E (K=2)": ("num_qs", 2),
    **{f"QAM-E (T={steps})": ("flow_steps", steps) for steps in (1, 3, 20, 30)},
}
_TEMPERATURES = (0.1, 0.3, 3, 10)


class Departure(NamedTuple):
    """One setting that is not the paper's.

    Attributes:
      kind: budget, online budget, networks, data, evaluation or hyperparameters.
      name: the setting.
      text: what it is here and in the paper, in words.
    """

    kind: str
    name: str
    text: str


def departures(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Departure]:
    """What a run does otherwise than the paper's run of this method on this task.

    Args:
      config: the run's config.json.
      metadata: its metadata.json.
    """
    paper = paper_settings(method_name(config["agent"]), config["env_name"])
    sensitivity = sensitivity_variant(config)
    if sensitivity:
        paper |= _varied(sensitivity, paper)
    large = bool(paper.pop("ogbench_dataset_dir", ""))
    flat = {**config, **config["agent"]}
    found = []
    for name, expected in paper.items():
        given = flat.get(name, expected)
        if not _same(given, expected):
            kind = _kind(name)
            text = f"{name} = {setting_words(given)} (paper: {setting_words(expected)})"
            found.append(Departure(kind, name, text))
    return [*found, *_data_departures(config, metadata, large)]


def paper_settings(method: str, env_name: str) -> dict[str, Any]:
    """What the paper sets for a method on a task, beside its schedule of evaluations.

    On a task that the paper does not have these are the defaults, and of a method that is no
    algorithm here there are none.

    Args:
      method: its published name, such as `QAM-E`.
      env_name: the task's name.
    """
    return dict(_paper_settings(agent_name(method), env_name))


@functools.cache
def _paper_settings(name: str | None, env_name: str) -> dict[str, Any]:
    from qam_jax.agents import algorithm_names, get_config  # slow, so only where it is needed

    if name not in algorithm_names():
        return {}
    agent = get_config(name).to_dict()
    agent.pop("agent_name")
    if name in ("qam_e", "qam_f"):  # which plain QAM becomes by one of these fields, the other at 0
        agent = {"edit_scale": 0.0, "fql_alpha": 0.0} | agent
    run = {field.name: field.default for field in dataclasses.fields(RunSettings)}
    common = {name: value for name, value in run.items() if _kind(name) != "hyperparameters"}
    try:
        settings, fields = presets.paper(name, env_name)
    except ValueError:
        return agent | common
    agent |= fields
    if agent["horizon_length"] == 1:
        agent.pop("action_chunking")  # makes no difference to chunks of one action
    settings.pop("eval_interval")
    return agent | common | settings


def sensitivity_variant(config: Mapping[str, Any]) -> str | None:
    """The name in the sensitivity study of a run of QAM-E with just that setting changed."""
    agent, domain = config["agent"], parse_task(config["env_name"]).domain
    if method_name(agent) != "QAM-E" or domain not in _sensitivity_domains():
        return None
    paper = paper_settings("QAM-E", config["env_name"])
    names = ("clip_grad_norm", "num_qs", "flow_steps", "inv_temp")
    changed = [name for name in names if not _same(agent.get(name, paper[name]), paper[name])]
    if len(changed) != 1:
        return None
    value = agent[changed[0]]
    for label, (name, varied) in _VARIANTS.items():
        if (changed[0], value) == (name, varied):
            return label
    if changed[0] == "inv_temp":
        for factor in _TEMPERATURES:
            if _same(value, factor * paper["inv_temp"]):
                return f"QAM-E ({factor}x tau)"
    return None


def setting_words(value: Any) -> str:
    """A setting's value as a reader likes it: `4 × 512`, `1,000,000`, `none`."""
    value = _plain(value)
    if isinstance(value, list):
        same = len(set(value)) == 1 and len(value) > 1
        return f"{len(value)} × {value[0]}" if same else " × ".join(map(str, value)) or "none"
    if isinstance(value, bool) or isinstance(value, str):
        return str(value) or "none"
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _varied(label: str, paper: Mapping[str, Any]) -> dict[str, Any]:
    if label in _VARIANTS:
        name, value = _VARIANTS[label]
        return {name: value}
    factor = float(label.removeprefix("QAM-E (").removesuffix("x tau)"))
    return {"inv_temp": factor * paper["inv_temp"]}


@functools.cache
def _sensitivity_domains() -> frozenset[str]:
    return frozenset(
        parse_task(result.env_name).domain for result in published_results("sensitivity")
    )


def _kind(name: str) -> str:
    kinds = {"budget": _BUDGET, "online budget": _ONLINE_BUDGET, "networks": _NETWORKS}
    kinds |= {"data": _DATA, "evaluation": ("eval_episodes",)}
    return next((kind for kind, names in kinds.items() if name in names), "hyperparameters")


def _data_departures(
    config: Mapping[str, Any], metadata: Mapping[str, Any], large: bool
) -> list[Departure]:
    """Data that are not the paper's, of which the settings alone do not tell.

    Args:
      config: the run's config.json.
      metadata: its metadata.json.
      large: whether the paper trains on a folder of files.
    """
    found = []
    source = metadata.get("dataset_source") or ""
    simulated = _SIMULATED.search(source)
    if simulated:
        text = f"data simulated here ({simulated[1]} episodes), not OGBench's file"
        found.append(Departure("data", "dataset_source", text))
    if large and not config.get("ogbench_dataset_dir"):
        text = "one file of data (paper: 100 files of a million transitions)"
        found.append(Departure("data", "ogbench_dataset_dir", text))
    elif config.get("ogbench_dataset_dir") and not large:
        text = "a folder of files (paper: one file of data)"
        found.append(Departure("data", "ogbench_dataset_dir", text))
    if config.get("run"):
        found.append(Departure("budget", "run", "started from another run's checkpoint"))
    return found


def _same(value: Any, other: Any) -> bool:
    """Whether two settings are equal, but for the last digits of a product."""
    if isinstance(value, float) or isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-9)
    return _plain(value) == _plain(other)


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, with whole numbers as such."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
