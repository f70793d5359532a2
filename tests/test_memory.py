import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax import memory
from qam_jax.agents import Agent
from qam_jax.data import npz
from qam_jax.data.dataset import make_dataset
from qam_jax.data.replay import Replay, _read_log
from qam_jax.files import num_usable_cpus
from qam_jax.runs import command_line
from qam_jax.runs.command_line import plain_errors
from qam_jax.runs.saved import check_state_fits


@pytest.fixture(name="gpu")
def _gpu(monkeypatch):
    """An accelerator with 100 of 1100 bytes free."""
    stats = {"bytes_limit": 1100, "bytes_in_use": 1000}
    device = types.SimpleNamespace(memory_stats=lambda: stats, device_kind="NVIDIA H100")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.mark.parametrize(
    ("arrays_of", "wanted"),
    [
        (lambda: jnp.ones((10**7, 10**7)), "Out of memory allocating 400000000000000 bytes"),
        (lambda: np.ones((10**7, 10**7)), r"Unable to allocate 728. TiB for an array"),
    ],
)
def test_out_of_memory_is_one_line_whoever_runs_out(arrays_of, wanted):
    with pytest.raises(SystemExit, match=rf"^Error: out of memory \({wanted}[^\n]*batch_size"):
        with plain_errors():
            arrays_of().block_until_ready()


def test_other_errors_of_programs_stay(monkeypatch):
    monkeypatch.setattr(command_line, "own_place", lambda _: "")  # as if the package raised it
    with pytest.raises(RuntimeError, match=r"^broken$"), plain_errors():
        raise RuntimeError("broken")


def test_what_cannot_fit_the_device_is_refused_beforehand(gpu, tmp_path):
    data = {
        "observations": np.zeros((20, 1)), "actions": np.zeros((20, 1)), "rewards": np.zeros(20),
        "terminals": np.arange(20) == 19,
    }  # fmt: skip
    free = "100 bytes of NVIDIA H100 are free"
    with pytest.raises(MemoryError, match=f"19 transitions.*{free}.*--dataset_proportion"):
        make_dataset(data)
    with pytest.raises(MemoryError, match=f"buffers of 5 trans.* need 120 bytes.*{free}.*buffer_s"):
        Replay(5, 1, 1, tmp_path)
    agent = types.SimpleNamespace(init=lambda key, observation, action: observation)
    check_state_fits(agent, 25, 1)
    with pytest.raises(MemoryError, match=f"for 2 seeds, need 200 bytes.*{free}.*--num_seeds"):
        check_state_fits(agent, 25, 1, count=2)


def test_a_file_that_does_not_fit_is_refused_unread(tmp_path):
    header = npz.ArrayHeader((10**12, 10), np.dtype(np.float64), False, 0, 0)
    with pytest.raises(MemoryError, match=r"big\.npz need 40\.0 TB.*--ogbench_dataset_dir"):
        npz.read_arrays(tmp_path / "big.npz", {"observations": header})


def test_a_file_is_not_called_damaged_for_lack_of_memory(tmp_path, monkeypatch):
    def fail(path):
        raise MemoryError("Unable to allocate")

    (tmp_path / "000000000000.npz").touch()
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(MemoryError):
        _read_log(tmp_path, 1, 1)


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    without = memory.free_memory()
    assert without > 10**6
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 400\n")
    assert memory.free_memory() == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() > 10**6
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.free_memory() > 10**6


def test_processes_beyond_the_machine_are_refused(caplog):
    memory.check_processes("--num_envs=2", 2)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"--num_envs=10000000 asks for .* at most"):
        memory.check_processes("--num_envs=10000000", 10**7)
    memory.check_processes("--num_envs=many", 17 * num_usable_cpus(), num_bytes=1)
    assert "mainly wait for each other" in caplog.text


def test_updates_are_refused_before_they_start(gpu):
    from qam_jax.training.devices import Layout
    from qam_jax.training.update import compile_block, empty_sums, make_block

    @dataclasses.dataclass
    class State:
        step: jax.Array

    jax.tree_util.register_dataclass(State, ["step"], [])

    def update(state, batch):
        big = jnp.outer(batch, batch)
        return State(state.step + 1), {"loss": (big @ big).sum()}

    agent = Agent(init=None, update=update, sample_actions=None)
    block = make_block(agent, lambda data, key: data, Layout([0]))
    arguments = State(jnp.int32(0)), empty_sums(["loss"]), jax.random.PRNGKey(0), jnp.ones(100), 1
    with pytest.raises(MemoryError, match=r"updates need .* are free. Lower --config.batch_size"):
        compile_block(block, *arguments)
