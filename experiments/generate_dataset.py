"""Makes an OGBench dataset with its published recipe.

Example:
  python experiments/generate_dataset.py --dataset=cube-single-play-v0
"""

from absl import flags

from qam_jax.data import generate
from qam_jax.data.tasks import parse_task
from qam_jax.files import user_path
from qam_jax.runs.command_line import run_main

_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "Dataset to make, such as cube-single-play-v0; or a single-task environment that uses it, such "
    "as cube-single-play-singletask-task2-v0.",
)
_DATASET_DIR = flags.DEFINE_string("dataset_dir", "~/.ogbench/data", "Folder for the files.")
_NUM_EPISODES = flags.DEFINE_integer(
    "num_episodes",
    None,
    "Number of training episodes; by default the published number.",
    lower_bound=1,
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the data.", lower_bound=0)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Worker processes; by default one for each usable CPU.", lower_bound=1
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a dataset that exists.")
_LIST = flags.DEFINE_bool("list", False, "Print the names of the datasets that can be made.")


def main(_: list[str]) -> None:
    if _LIST.value:
        print("\n".join(generate.generatable_names()))
        return
    name = _DATASET.value
    if name is None:
        raise ValueError("which dataset? Give --dataset=<name>; --list prints the names.")
    if "singletask" in name.split("-"):
        name = parse_task(name).dataset_name
    recipe = generate.get_recipe(name)  # raises for a name that cannot be made
    count = _NUM_EPISODES.value or recipe.num_episodes
    folder = user_path(_DATASET_DIR.value)
    path = folder / f"{name}.npz"
    if path.exists() and not _OVERWRITE.value:
        print(f"{path} exists and is kept; --overwrite replaces it.")
        return
    print(f"making {name} ({count} training episodes) in {folder}", flush=True)
    options = {"seed": _SEED.value, "num_processes": _NUM_PROCESSES.value}
    generate.generate_dataset(name, folder, num_episodes=count, **options)
    print(f"wrote {path} and {path.with_name(f'{name}-val.npz')}")


if __name__ == "__main__":
    run_main(main, stopped="Nothing was written.")
