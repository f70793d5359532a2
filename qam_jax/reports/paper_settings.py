"""Settings of the paper, and where the settings of a run differ from them.

The paper's settings are `qam_jax.runs.presets.paper`. Everything that the preset leaves open keeps
the default of the algorithm's config and of `RunSettings`.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from qam_jax.agents import algorithm_names, get_config, variant_fields, variant_name
from qam_jax.reports.labels import method_name, setting_words, task_label
from qam_jax.reports.published import published_results
from qam_jax.runs import presets
from qam_jax.runs.settings import RunSettings, names_with_role


def paper_differences(
    config: Mapping[str, Any], metadata: Mapping[str, Any], stage: str = "online"
) -> dict[str, str]:
    """Settings of a run that differ from the paper's run of this method on this task, in words.

    Each has its value in the run, by config.json and metadata.json, and in the paper. The stage
    `offline` leaves out the settings of fine-tuning.
    """
    paper = dict(paper_settings(variant_name(config["agent"]), config["env_name"]))
    if variant := sensitivity_variant(config):
        paper |= dict([_variant_settings(paper)[variant]])
    return _differences(config, metadata, paper, stage)


def protocol_differences(
    config: Mapping[str, Any], metadata: Mapping[str, Any], protocol: Mapping[str, Any]
) -> dict[str, str]:
    """Differences of a run's data, updates, reward or chunks from those of published figures.

    They are in words, as those of `paper_differences`; the `protocol` is a row of
    `published.other_figures`.
    """
    expected = _run_defaults() | {
        "ogbench_dataset_dir": "shards" if protocol["data"] == "100M" else "",
        "sparse": protocol["reward"] == "sparse",
        "horizon_length": protocol["horizon_length"],
        "offline_steps": protocol["offline_steps"],
    }
    if protocol["horizon_length"] > 1:
        expected["action_chunking"] = True
    return _differences(config, metadata, expected, "offline", whose="figures")


@functools.cache
def paper_settings(agent_name: str, env_name: str) -> Mapping[str, Any]:
    """Settings of the paper for an algorithm on a task, without the interval of evaluations.

    They are the defaults on a task that the paper does not have. There are none for an algorithm
    that is not in this package.
    """
    if agent_name not in algorithm_names():
        return {}
    # A variant is told by one of these fields; the other fields are at 0.
    agent = dict.fromkeys(variant_fields(agent_name), 0.0) | get_config(agent_name).to_dict()
    agent.pop("agent_name")
    try:
        settings, fields = presets.paper(agent_name, env_name)
    except ValueError:
        return agent | _run_defaults()
    agent |= fields
    if agent["horizon_length"] == 1:
        agent.pop("action_chunking")  # makes no difference to chunks of one action
    settings.pop("eval_interval")
    return agent | _run_defaults() | settings


def sensitivity_variant(config: Mapping[str, Any]) -> str | None:
    """Label in the sensitivity study of a run of QAM-E with one setting changed; None otherwise."""
    agent, domain = config["agent"], task_label(config["env_name"])[0]
    if method_name(agent) != "QAM-E" or domain not in _sensitivity_domains():
        return None
    paper = paper_settings(variant_name(agent), config["env_name"])
    variants = _variant_settings(paper)
    ours = {name: agent.get(name, paper[name]) for name, _ in variants.values()}
    for label, changed in variants.items():
        expected = {**paper, **dict([changed])}
        if all(_same(value, expected[name]) for name, value in ours.items()):
            return label
    return None


def _differences(
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
    expected: dict[str, Any],
    stage: str,
    whose: str = "paper",
) -> dict[str, str]:
    """Settings of a run at one stage that are not as `expected`, in words that say `whose`."""
    large = bool(expected.pop("ogbench_dataset_dir", ""))
    flat = {**config, **config["agent"]}
    texts = {
        name: f"{name} = {setting_words(flat[name])} ({whose}: {setting_words(value)})"
        for name, value in expected.items()
        if name in flat and not _same(flat[name], value)
    }
    source = metadata.get("dataset_source") or ""
    if simulated := re.search(r"\(simulated: (\d+ episodes)", source):
        texts["dataset_source"] = f"data simulated here ({simulated[1]}), not OGBench's file"
    if bool(config.get("ogbench_dataset_dir")) != large:
        texts["ogbench_dataset_dir"] = (
            f"one file of data ({whose}: 100 files of a million transitions)"
            if large
            else f"a folder of files ({whose}: one file of data)"
        )
    if config.get("run"):
        texts["run"] = "started from another run's checkpoint"
    left_out = names_with_role("online") | {"online_steps"} if stage == "offline" else set()
    return {name: text for name, text in texts.items() if name not in left_out}


def _run_defaults() -> dict[str, Any]:
    counted = names_with_role("result", "schedule", "online") - {"env_name"}
    return {f.name: f.default for f in dataclasses.fields(RunSettings) if f.name in counted}


def _variant_settings(paper: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Changed setting and its value of each variant of the sensitivity study, by label."""
    return {
        "QAM-E-NOCLIP": ("clip_grad_norm", 0),
        "QAM-E (K=2)": ("num_qs", 2),
        **{f"QAM-E (T={steps})": ("flow_steps", steps) for steps in (1, 3, 20, 30)},
        **{f"QAM-E ({x}x tau)": ("inv_temp", x * paper["inv_temp"]) for x in (0.1, 0.3, 3, 10)},
    }


@functools.cache
def _sensitivity_domains() -> frozenset[str]:
    names = published_results("sensitivity")["env_name"]
    return frozenset(task_label(name)[0] for name in names)


def _same(value: Any, other: Any) -> bool:
    """Whether two settings are equal, up to the rounding of a product."""
    if isinstance(value, float) or isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-9)
    return json.loads(json.dumps(value)) == json.loads(json.dumps(other))  # tuples become lists
