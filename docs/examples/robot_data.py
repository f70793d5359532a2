"""Stands in for a robot's recordings: the episodes of `reach.py` as a LeRobot dataset (v3.0).

Positions are in centimetres and actions are steps in centimetres, as a robot might record them.

python docs/examples/robot_data.py reach.npz robot_data
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd


def write(columns, folder):
    """Writes the columns of `reach.record` into a new folder."""
    ends = columns["terminals"] == 1
    episodes = np.cumsum(ends) - ends
    starts = np.flatnonzero(np.diff(episodes, prepend=-1))
    table = pd.DataFrame(
        {
            "observation.state": list(100 * columns["observations"]),
            "action": list(10 * columns["actions"]),
            "next.success": columns["masks"] == 0,
            "episode_index": episodes.astype(int),
            "frame_index": np.arange(len(ends)) - starts[episodes.astype(int)],
            "task_index": 0,
        }
    )
    features = {
        "observation.state": {"dtype": "float32", "shape": [2]},
        "action": {"dtype": "float32", "shape": [2]},
        "next.success": {"dtype": "bool", "shape": [1]},
    }
    info = {"codebase_version": "v3.0", "total_frames": len(table), "features": features}
    for name in ("meta", "data/chunk-000"):
        Path(folder, name).mkdir(parents=True)
    Path(folder, "meta", "info.json").write_text(json.dumps(info))
    tasks = pd.DataFrame({"task_index": [0]}, index=["reach the goal"])
    tasks.rename_axis("task").to_parquet(Path(folder, "meta", "tasks.parquet"))
    table.to_parquet(Path(folder, "data", "chunk-000", "file-000.parquet"))


if __name__ == "__main__":
    with np.load(sys.argv[1]) as archive:
        write(dict(archive), sys.argv[2])
