"""Benchmarks of training: the update, the loop around it, how time grows, several seeds."""

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import fit_exponent, interleave, make_peak, row
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, get_config, make_agent
from qam_jax.data.dataset import DataSource, make_dataset, sample_windows
from qam_jax.data.normalization import Normalization
from qam_jax.runs.saved import init_state
from qam_jax.runs.settings import RunSettings
from qam_jax.training.devices import Layout
from qam_jax.training.run import Plan, Run
from qam_jax.training.stage import Stage
from qam_jax.training.update import empty_sums, make_block, metric_names
from qam_jax.types import Batch, TransitionDataset

_SIZES = {  # changes of the config, observation, action
    "paper": ({}, 28, 5),
    "paper, bfloat16": ({"compute_dtype": "bfloat16"}, 28, 5),
    "small": ({"width": 128, "layers": 2, "num_qs": 2}, 28, 5),
    "humanoid": ({"action_chunking": False, "horizon_length": 1}, 69, 21),
}
_LOOPS = {  # changes of the config, and how many updates are a round
    "width 8": ({"width": 8, "layers": 4, "num_qs": 2}, 400),
    "small": (_SIZES["small"][0], 50),
}
_SWEPT = {"width": 64, "layers": 2, "num_qs": 2, "batch_size": 128}
_SWEEPS = {
    "flow_steps": [1, 3, 10, 30],
    "batch_size": [64, 256, 1024, 4096],
    "num_qs": [2, 10, 20],
}


def update(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Times the update alone, with its FLOPs and its share of the machine's peak."""
    peak, peak_flops = make_peak()
    candidates, facts = {"peak": peak}, {}
    for name, (changes, observation, action) in _SIZES.items():
        if fast and name != "small":
            continue
        config = make_config(**changes)
        run, facts[name] = compile_update(config, observation, action)
        facts[name]["needed_flops"] = needed_flops(config, observation, action)
        candidates[name] = run
    times = interleave(candidates, repeats)
    limit = {kind: peak_flops / getattr(times["peak"], kind) for kind in ("wall", "cpu")}
    rows = [row("peak", limit["wall"] / 1e9, "GFLOP/s", higher_is_better=True)]
    for name, known in facts.items():
        flops, spent = known["needed_flops"], times[name]
        known["gflops_per_second"] = flops / np.median(spent.wall) / 1e9
        known["share_of_peak"] = flops / np.median(spent.wall) / np.median(limit["wall"])
        known["share_of_peak_by_cpu"] = flops / np.median(spent.cpu) / np.median(limit["cpu"])
        known["cpu_ms"] = 1e3 * np.median(spent.cpu)
        compile_s, memory = known.pop("compile_s"), known.pop("temporary_mb")
        rows.append(row(f"update/{name}", 1e3 * spent.wall, "ms", **known))
        rows.append(row(f"compile/{name}", compile_s, "s"))
        rows.append(row(f"memory/{name}", memory, "MB"))
    return rows


def loop(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Times the offline stage with small networks, and its part outside the compiled program."""
    rows = []
    for name, (changes, count) in _LOOPS.items():
        rows += _loop(name, make_config(**changes), 10 if fast else count, repeats)
    return rows


def _loop(name: str, config: ConfigDict, count: int, repeats: int) -> list[dict[str, Any]]:
    agent, dataset = make_agent(config), make_synthetic(28, 5)
    key = jax.random.PRNGKey(1)
    source = DataSource(dataset, "synthetic", Path())
    settings, layout = RunSettings(offline_steps=10**9), Layout([0])
    dims = 28, 5
    plan = Plan(settings, agent, config, source, dims, Normalization.identity(*dims), None)
    run = Run(plan, settings, Path(), None)
    block = make_block(
        agent,
        lambda data, key: sample_windows(
            data, key, config.batch_size, config.horizon_length, config.discount
        ),
        layout,
    )
    state = init_state(agent, jax.random.PRNGKey(0), 28, 5)
    sums = partial(empty_sums, metric_names(agent, state, config, 28))
    carry = [jax.tree.map(jnp.copy, state), sums()]
    run.stage, run.state, run.sums = "offline", state, sums()
    stage = Stage(plan, [run], layout)

    def run_stage():
        end = run.step + count
        while run.step < end:
            stage.advance([end])

    def run_block():
        carry[:] = jax.block_until_ready(block(*carry, key, dataset, np.int32(count)))

    times = interleave({"stage": run_stage, "block": run_block}, repeats)
    per_update = {name: 1e3 * spent.wall / count for name, spent in times.items()}
    cpu = {name: float(1e3 * np.median(spent.cpu) / count) for name, spent in times.items()}
    outside = 1e3 * (per_update["stage"] - per_update["block"])
    return [
        row(f"loop/{name}", per_update["stage"], "ms", cpu_ms=cpu["stage"]),
        row(f"loop/{name}, compiled block alone", per_update["block"], "ms", cpu_ms=cpu["block"]),
        row(f"loop/{name}, outside the block", outside, "us"),
    ]


def growth(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Times updates against flow steps, batch size and critics, and fits power laws."""
    rows = []
    for field, values in _SWEEPS.items():
        values = values[:2] if fast else values
        runs = {}
        for value in values:
            config = make_config(**{**_SWEPT, field: value})
            runs[value], _ = compile_update(config, 28, 5)
        times = interleave(runs, repeats)
        medians = [float(np.median(times[value].wall)) for value in values]
        rows += [row(f"update/{field}={value}", 1e3 * times[value].wall, "ms") for value in values]
        exponent = fit_exponent(values, medians)
        rows.append(row(f"exponent of {field}", exponent, ""))
    return rows


def seeds(repeats: int, fast: bool) -> list[dict[str, Any]]:
    """Times several seeds in one program: updates per second of each and of all."""
    config = make_config(width=128, layers=2, num_qs=2)
    runs = {}
    for count in (1, 2) if fast else (1, 2, 4, 8):
        runs[count], _ = compile_update(config, 28, 5, count)
    return [
        row(
            f"seeds/{count}",
            count / spent.wall,
            "updates/s of all",
            higher_is_better=True,
            per_seed=float(np.median(1 / spent.wall)),
        )
        for count, spent in interleave(runs, repeats).items()
    ]


def make_config(width: int = 512, layers: int = 4, **changes: Any) -> ConfigDict:
    """QAM's config with networks of one size."""
    config = get_config("qam")
    config.update(changes)
    config.actor_hidden_dims = config.critic_hidden_dims = (width,) * layers
    return config


def compile_update(config: ConfigDict, observation: int, action: int, num_seeds: int = 0):
    """Compiles a function that makes the next update, and reads the compiler's facts about it."""
    agent: Agent = make_agent(config)
    keys = jax.random.split(jax.random.PRNGKey(0), max(1, num_seeds))
    init = partial(init_state, agent, observation_dim=observation, action_dim=action)
    state: AgentState = jax.vmap(init)(keys) if num_seeds else init(keys[0])
    update = jax.vmap(agent.update, in_axes=(0, None)) if num_seeds else agent.update
    batch = make_batch(config, observation, action)
    started = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    facts = {
        "compile_s": time.perf_counter() - started,
        "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
        "temporary_mb": memory.temp_size_in_bytes / 1e6 if memory else float("nan"),
    }
    carry = [state]

    def run():
        carry[0], _ = compiled(carry[0], batch)
        return carry[0]

    return run, facts


def needed_flops(config: ConfigDict, observation: int, action: int) -> float:
    """Counts, roughly, the FLOPs of the matrix products that an update of QAM needs.

    Counted are passes through a network. A backward pass counts two, or one where only the
    gradient in the inputs is needed. Critics: target 1, loss 3, terminal adjoint 2. Flows:
    cloning 3; per flow step next action 1, path 1, base velocity 1, lean adjoint 2, regression 2.
    """
    chunk = action * (config.horizon_length if config.action_chunking else 1)

    def weights(inputs: int, hidden: tuple[int, ...], outputs: int) -> int:
        sizes = (inputs, *hidden, outputs)
        return sum(a * b for a, b in itertools.pairwise(sizes))

    critic = weights(observation + chunk, config.critic_hidden_dims, 1)
    flow = weights(observation + chunk + 1, config.actor_hidden_dims, chunk)
    passes = 6 * config.num_qs * critic + (3 + 7 * config.flow_steps) * flow
    return 2.0 * config.batch_size * passes


def make_batch(config: ConfigDict, observation: int, action: int) -> Batch:
    """A batch of noise."""
    rng = np.random.default_rng(0)
    size, horizon = config.batch_size, config.horizon_length
    columns = {
        "observations": rng.normal(size=(size, observation)),
        "actions": rng.uniform(-1, 1, size=(size, horizon, action)),
        "rewards": -np.ones(size),
        "masks": np.ones(size),
        "weights": np.ones(size),
        "next_observations": rng.normal(size=(size, observation)),
    }
    return Batch(**{name: jnp.asarray(column, jnp.float32) for name, column in columns.items()})


def make_synthetic(observation: int, action: int, rows: int = 100_000) -> TransitionDataset:
    """Episodes of 1000 rows of noise."""
    rng = np.random.default_rng(0)
    return make_dataset(
        {
            "observations": rng.normal(size=(rows, observation)).astype(np.float32),
            "actions": rng.uniform(-1, 1, size=(rows, action)).astype(np.float32),
            "rewards": -np.ones(rows, np.float32),
            "terminals": np.arange(1, rows + 1) % 1000 == 0,
        }
    )
