"""Where a run's settings depart from the paper's, so that a comparison is not misread.

The paper's settings are the defaults of each algorithm's config, of `RunSettings`, and what
`paper_settings` puts in their place by domain (arXiv 2601.14234, appendix).
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qam_jax.analysis.names import agent_name, method_name, parse_task
from qam_jax.analysis.published import published_hyperparameters, sparse_domains

_LARGE_DATA = ("cube-quadruple", "puzzle-4x4")  # domains with 100 files of a million transitions
_QUALITY = {"stitch": "navigate", "noisy": "play"}  # whose hyperparameters the study takes over

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
    flat = {**config, **config["agent"]}
    found = []
    for name, expected in paper.items():
        given = flat.get(name, expected)
        if not _same(given, expected):
            kind = _kind(name)
            text = f"{name} = {setting_words(given)} (paper: {setting_words(expected)})"
            found.append(Departure(kind, name, text))
    return [*found, *_data_departures(config, metadata)]


def paper_settings(method: str, env_name: str) -> dict[str, Any]:
    """What the paper sets for a method on a task, beside its schedule of evaluations."""
    return dict(_paper_settings(method, parse_task(env_name).domain))


@functools.cache
def _paper_settings(method: str, domain: str) -> dict[str, Any]:
    from qam_jax.agents import algorithm_names, get_config

    name = agent_name(method)
    if name not in algorithm_names():
        name = "qam"  # QAM-E and QAM-F, where they are told by their fields
    agent = get_config(name).to_dict()
    agent.pop("agent_name")
    agent |= {"edit_scale": 0.0, "fql_alpha": 0.0} if name.startswith("qam") else {}
    locomotion = domain.startswith(("antmaze", "humanoidmaze", "pointmaze", "antsoccer"))
    agent["horizon_length"], agent["action_chunking"] = (1 if locomotion else 5), True
    if locomotion:
        agent.pop("action_chunking")  # makes no difference to chunks of one action
    long = domain.startswith(("antmaze-giant", "humanoidmaze"))
    agent["discount"] = 0.995 if long else 0.99
    if "rho" in agent:
        agent["rho"] = 0.0 if domain.startswith("humanoidmaze") else 0.5
    agent |= published_hyperparameters().get((method, _tuned_domain(domain)), {})
    return agent | {
        "bc_steps": 0,
        "offline_steps": 0 if method == "RLPD" else 1_000_000,
        "online_steps": 500_000,
        "start_training": 5000,
        "utd_ratio": 1,
        "balanced_sampling": method == "RLPD",
        "dataset": "",
        "dataset_proportion": 1.0,
        "dataset_replace_interval": 1000,
        "sparse": _tuned_domain(domain) in sparse_domains(),
        "eval_episodes": 50,
    }


def sensitivity_variant(config: Mapping[str, Any]) -> str | None:
    """The name in the sensitivity study of a run of QAM-E with just that setting changed."""
    agent, domain = config["agent"], parse_task(config["env_name"]).domain
    if method_name(agent) != "QAM-E" or ("QAM-E", domain) not in published_hyperparameters():
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


def _tuned_domain(domain: str) -> str:
    """The domain whose hyperparameters are used on this one."""
    base, _, kind = domain.rpartition("-")
    return f"{base}-{_QUALITY[kind]}" if kind in _QUALITY else domain


def _kind(name: str) -> str:
    kinds = {"budget": _BUDGET, "online budget": _ONLINE_BUDGET, "networks": _NETWORKS}
    kinds |= {"data": _DATA, "evaluation": ("eval_episodes",)}
    return next((kind for kind, names in kinds.items() if name in names), "hyperparameters")


def _data_departures(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Departure]:
    """Data that are not the paper's, of which the settings alone do not tell."""
    found = []
    source = metadata.get("dataset_source") or ""
    simulated = _SIMULATED.search(source)
    if simulated:
        text = f"data simulated here ({simulated[1]} episodes), not OGBench's file"
        found.append(Departure("data", "dataset_source", text))
    large = parse_task(config["env_name"]).domain.startswith(_LARGE_DATA)
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
