"""Exports the policy of a saved run: `python experiments/export.py --run=<folder> --out=<folder>`.

Each format is checked against the checkpoint, and the largest difference is printed.
"""

import os

from absl import flags

from qam_jax.runs.command_line import run_main

_RUN = flags.DEFINE_string("run", None, "The run's folder.", required=True)
_OUT = flags.DEFINE_string("out", None, "The folder to write.", required=True)
_FORMATS = flags.DEFINE_list(
    "formats",
    ["stablehlo", "onnx", "safetensors"],
    "Some of stablehlo (a program for CPU, GPU and TPU, which needs JAX alone), onnx (a model for "
    "onnxruntime and others), safetensors (the parameters alone).",
)
_STEP = flags.DEFINE_string("step", "newest", "Checkpoint: a step, newest or best.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 1e-4, "Largest difference from the checkpoint's actions."
)
flags.register_validator("tolerance", lambda number: number >= 0, "must be a number of at least 0.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier export in --out.")


def main(_: list[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the comparison is of float32 products
    from qam_jax.deploy.export import export_policy

    differences = export_policy(
        _RUN.value,
        _OUT.value,
        _FORMATS.value,
        _STEP.value,
        overwrite=_OVERWRITE.value,
        tolerance=_TOLERANCE.value,
    )
    for name, difference in differences.items():
        print(f"policy.{name}: differs from the checkpoint by at most {difference:.2g}")
    print(f"Export: {_OUT.value}")


if __name__ == "__main__":
    run_main(main)
