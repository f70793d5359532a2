"""Compiles training for accelerators that are not there: `python benchmarks/accelerators.py`.

XLA compiles for a GPU or a TPU on any machine. The result is the program that would run there: its
kernels, its memory on each device, its communication between devices. It cannot run here. Prints
a table, and writes a JSON file. docs/performance.md says what to install, and what the columns
mean. Ends with status 1 if a program does not scale over the devices, see `find_faults`.
"""

import ast
import datetime
import importlib.util
import math
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from hlo import read_program
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from methods import count_flops
from ml_collections import ConfigDict
from training import make_batch, make_synthetic

from qam_jax.agents import Agent, AgentState, algorithm_names, get_config, make_agent
from qam_jax.data.dataset import sample_windows
from qam_jax.files import read_json, write_json
from qam_jax.runs.command_line import run_main
from qam_jax.training.devices import Layout
from qam_jax.training.update import empty_sums, make_block, metric_names
from qam_jax.types import Array, Batch, TransitionDataset

_OBSERVATION, _ACTION = 28, 5
_ROWS = 1_000_000  # of the dataset on the device
_FOLDER = Path(__file__).resolve().parent


class Chip(NamedTuple):
    """Constants of a chip that bound the time of a program from below.

    Attributes:
      float32: FLOP per second of float32 products in JAX's default precision.
      bfloat16: FLOP per second of bfloat16 products.
      bandwidth: bytes per second of the chip's memory.
      launch: seconds that a kernel adds to its own work; a TPU's program is not launched in parts.
      source: of these numbers.
    """

    float32: float
    bfloat16: float
    bandwidth: float
    launch: float
    source: str


_H100 = Chip(
    float32=494.7e12,  # as TF32
    bfloat16=989.4e12,
    bandwidth=3.35e12,
    launch=0.9e-6,
    source="NVIDIA's data sheet of the H100 SXM, without sparsity; developer.nvidia.com/blog/"
    "cuda-graphs: 3.8 us for each launch of a kernel of 2.9 us, on a V100",
)
_V5E = Chip(197e12, 197e12, 819e9, 0.0, "cloud.google.com/tpu/docs/v5e")
_V5P = Chip(459e12, 459e12, 2765e9, 0.0, "cloud.google.com/tpu/docs/v5p")


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
      chip: each of them.
      slice: of TPUs, Google's name of a slice of this size; empty for a GPU.
    """

    chip: Chip
    slice: str = ""


TARGETS = {
    "h100": Target(_H100),
    "v5e:2x4": Target(_V5E, "v5litepod-8"),
    "v5e:4x4": Target(_V5E, "v5litepod-16"),
    "v5p:2x2x2": Target(_V5P, "v5p-16"),
}

_COLUMNS = (
    "target", "method", "program", "seeds", "mesh", "compile, s", "kernels", "loop iterations",
    "scratch, MB", "state, MB", "GFLOP", "GB accessed", "collectives", "at least, ms",
)  # fmt: skip


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_list("targets", list(TARGETS), f"of {', '.join(TARGETS)}")
    flags.DEFINE_list("methods", algorithm_names(), "Methods whose update is compiled.")
    flags.DEFINE_string("block_method", "qam", "Method whose block of updates is compiled.")
    flags.DEFINE_list("seeds", ["1", "8", "64"], "Numbers of seeds in a block; empty: no block.")
    flags.DEFINE_multi_string("set", [], "<field>=<value> of the methods' configs; repeatable.")
    flags.DEFINE_string("output", "accelerators.json", "The JSON file.")
    flags.DEFINE_bool("prepared", False, "Internal: this process has the target's environment.")


def main(_: list[str]) -> None:
    """Compiles for each target in a process of its own, whose environment JAX reads at start."""
    options = flags.FLAGS
    if options.prepared:
        _write_rows(options)
        return
    for method in [*options.methods, options.block_method]:
        make_agent(_make_config(method, options.set))  # fails before anything is compiled
    environments = {name: _environment(name) for name in options.targets}
    _print_row(_COLUMNS)
    _print_row(["---"] * len(_COLUMNS))
    rows = [row for name in environments for row in _start(name, environments[name])]
    facts = {"date": str(datetime.date.today()), "jax": jax.__version__, "set": options.set}
    chips = {name: TARGETS[name].chip._asdict() for name in options.targets}
    write_json(options.output, {**facts, "chips": chips, "rows": rows})
    faults = find_faults(rows)
    if faults:
        sys.exit("\n".join(f"Error: {fault}" for fault in faults))


def _environment(name: str) -> dict[str, str]:
    """Environment of a process that compiles for a target.

    Raises:
      ValueError: if there is no such target.
      ImportError: if a package is missing.
    """
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}: --targets takes {', '.join(TARGETS)}.")
    shared = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if TARGETS[name].slice:
        if importlib.util.find_spec("libtpu") is None:
            raise ImportError(f'the target {name} needs libtpu: pip install "jax[tpu]"')
        return {
            **shared,
            "TPU_ACCELERATOR_TYPE": TARGETS[name].slice,
            "TPU_LOG_DIR": "disabled",
            "TPU_SKIP_MDS_QUERY": "1",  # the service that tells a real TPU's shape
            "TPU_WORKER_HOSTNAMES": "localhost",
        }
    nvcc = Path(sysconfig.get_paths()["purelib"], "nvidia", "cuda_nvcc")
    if importlib.util.find_spec("jax_cuda12_plugin") is None or not nvcc.exists():
        raise ImportError(f'the target {name} needs CUDA\'s compiler: pip install "jax[cuda12]"')
    xla_flags = f"--xla_gpu_cuda_data_dir={nvcc} --xla_gpu_autotune_level=0"
    return {
        **shared,
        "XLA_FLAGS": f"{xla_flags} {os.environ.get('XLA_FLAGS', '')}",
        "PATH": f"{nvcc / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def _start(name: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Starts this program for one target, and returns its rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        own = ["--prepared", f"--targets={name}", f"--output={path}"]
        done = subprocess.run([sys.executable, *sys.argv, *own], env=environment, check=False)
        if done.returncode:
            sys.exit(done.returncode)  # the process has said why
        return read_json(path)["rows"]


def _write_rows(options: flags.FlagValues) -> None:
    """Writes the rows that `_start` reads."""
    write_json(options.output, {"rows": list(_compile_all(options))})


def _compile_all(options: flags.FlagValues) -> Iterator[dict[str, Any]]:
    (name,) = options.targets
    devices = _devices(name)
    programs = [(method, "update", 1) for method in options.methods]
    programs += [(options.block_method, "block", int(count)) for count in options.seeds]
    for method, kind, count in programs:
        config = _make_config(method, options.set)
        row = {"target": name, **compile_program(config, kind, count, devices)}
        row["bound_ms"] = 1e3 * lower_bound(TARGETS[name].chip, config.compute_dtype, row)
        _print_row(_cells(row))
        yield row


def _devices(name: str) -> list[Any]:
    if TARGETS[name].slice:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    jax.devices()  # finds the plugin of CUDA
    description = (_FOLDER / f"{name}.txtpb").read_text(encoding="utf-8")
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=description, topology="1x1x1"
    ).devices


def _make_config(method: str, changes: Sequence[str]) -> ConfigDict:
    """The paper's configuration of a method, with the changes of --set."""
    config = get_config(method)
    for change in changes:
        field, _, value = change.partition("=")
        try:
            parsed = value if isinstance(config.get(field), str) else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(
                f"--set={change}: expected <field>=<value> with a value as in Python."
            ) from None
        with config.unlocked():
            config[field] = parsed
    return config


def compile_program(
    config: ConfigDict, kind: str, num_seeds: int, devices: Sequence[Any]
) -> dict[str, Any]:
    """Compiles a program of several seeds, spread over all devices as in training.

    Args:
      config: the method's config.
      kind: `update`, or `block` for the compiled block of updates with its data.
      num_seeds: seeds in the program.
      devices: to compile for.

    Returns:
      A row of the table. Its numbers are of one device; FLOPs, kernels, loop iterations and
      collectives are of one update.
    """
    agent = make_agent(config)
    with mock.patch.object(jax, "devices", return_value=list(devices)):
        layout = Layout(range(num_seeds), 0, config.batch_size)
    mesh = layout._mesh or Mesh([devices], ("seed", "data"))  # a single device needs none
    place = partial(_place, mesh, num_seeds)
    examples = jax.random.PRNGKey(0), jnp.zeros(_OBSERVATION), jnp.zeros(_ACTION)
    one = jax.eval_shape(agent.init, *examples)
    batch = jax.eval_shape(partial(make_batch, config, _OBSERVATION, _ACTION))
    state = place(one)
    flops = count_flops(jax.make_jaxpr(agent.update)(one, batch).jaxpr)
    started = time.perf_counter()
    if kind == "update":
        update = jax.jit(layout.map(agent.update), donate_argnums=0)
        lowered = update.lower(state, place(batch, "data"))
    else:
        sums = place(empty_sums(metric_names(agent, one, config, _OBSERVATION)))
        lowered = _lower_block(agent, config, layout, mesh, state, sums)
    program = lowered.compile()
    compile_s = time.perf_counter() - started
    shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state)]
    matrices = {math.prod(shard) for shard in shards if len(shard) - bool(num_seeds > 1) > 1}
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    return {
        "method": config.agent_name,
        "program": kind,
        "seeds": num_seeds,
        "mesh": [mesh.shape["seed"], mesh.shape["data"]],
        "compile_s": compile_s,
        "scratch_bytes": memory.temp_size_in_bytes,
        "state_bytes": memory.alias_size_in_bytes,  # the new state takes the memory of the old
        "data_bytes": memory.argument_size_in_bytes - memory.alias_size_in_bytes,
        "flops": flops * num_seeds / len(devices),
        "xla_flops": cost.get("flops"),
        "xla_bytes": cost.get("bytes accessed"),
        **read_program(program.as_text(), matrices, in_loop=kind == "block"),
    }


def _lower_block(
    agent: Agent, config: ConfigDict, layout: Layout, mesh: Mesh, state: AgentState, sums: Any
) -> jax.stages.Lowered:
    def sample(dataset: TransitionDataset, key: Array) -> Batch:
        return sample_windows(
            dataset, key, config.batch_size, config.horizon_length, config.discount
        )

    keys = _place(mesh, len(layout.seeds), jax.random.PRNGKey(0))
    dataset = jax.eval_shape(partial(make_synthetic, _OBSERVATION, _ACTION, _ROWS))
    everywhere = _place(mesh, 1, (dataset, jnp.int32(0)))
    block = make_block(agent, layout.map(sample, in_axes=(None, 0)), layout)
    return block.lower(state, sums, keys, *everywhere)


def _place(mesh: Mesh, num_seeds: int, tree: Any, *axes: str) -> Any:
    """Shapes of a tree on a mesh: one copy for each of several seeds, then along further axes."""
    lead, seeds = ((num_seeds,), ("seed",)) if num_seeds > 1 else ((), ())
    sharding = NamedSharding(mesh, PartitionSpec(*seeds, *axes))

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def lower_bound(chip: Chip, dtype: str, row: Mapping[str, Any]) -> float:
    """Seconds that an update takes at least: the products, or the state in and out of memory, and
    the launches of the kernels. `dtype` is that of the products."""
    work = row["flops"] / getattr(chip, dtype)
    traffic = 2 * row["state_bytes"] / chip.bandwidth
    return max(work, traffic) + row["kernels"] * chip.launch


def find_faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on programs that do not scale over devices as they should.

    A program with whole seeds on each device needs no communication. One that splits batches has
    the state on each device already, and gathers no part of it. The state on each device does not
    grow with the number of devices.
    """
    faults = []
    smallest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: math.prod(row["mesh"])):
        name = f"{row['target']}, {row['method']}, {row['program']} of {row['seeds']} seeds"
        for_seeds, for_data = row["mesh"]
        if for_data == 1 and row["collectives"]:
            faults.append(
                f"{name}: {for_seeds} devices with seeds of their own communicate "
                f"({', '.join(row['collectives'])})."
            )
        if for_data > 1 and row["gathered_matrices"]:
            faults.append(
                f"{name}: {row['gathered_matrices']} matrices of the state are gathered "
                f"although each of {for_data} devices has them."
            )
        kind = row["target"].partition(":")[0], row["method"], row["program"], row["seeds"]
        before = smallest.setdefault(kind, row)
        if row["state_bytes"] > before["state_bytes"]:
            faults.append(
                f"{name}: {row['state_bytes']} bytes of state on each device, but "
                f"{before['state_bytes']} on {before['target']}."
            )
    return faults


def _cells(row: Mapping[str, Any]) -> list[str]:
    launch = TARGETS[row["target"]].chip.launch
    collectives = ", ".join(
        f"{count} {name} of {size / 1e6:.1f} MB"
        for name, (count, size) in row["collectives"].items()
    )
    return [
        row["target"], row["method"], row["program"], str(row["seeds"]),
        " × ".join(map(str, row["mesh"])), f"{row['compile_s']:.0f}",
        f"{row['kernels']:,}" if launch else "–", str(row["loop_iterations"]),
        f"{row['scratch_bytes'] / 1e6:.0f}", f"{row['state_bytes'] / 1e6:.0f}",
        f"{row['flops'] / 1e9:.1f}",
        f"{row['xla_bytes'] / 1e9:.2f}" if row["xla_bytes"] else "–",
        collectives or "none", f"{row['bound_ms']:.2f}",
    ]  # fmt: skip


def _print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    define_flags()
    run_main(main)
