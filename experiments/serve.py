"""Serves a saved run: `python experiments/serve.py --run=exp/<group>/<env_name>/<run id>`.

Clients speak the protocol of openpi-client, see docs/deploy.md. Ctrl-C or SIGTERM ends it.
"""

from absl import flags

from qam_jax.runs.command_line import run_main

_RUN = flags.DEFINE_string("run", None, "Folder of a run, or of an export.", required=True)
_STEP = flags.DEFINE_string("step", "newest", "Checkpoint: a step, newest or best.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 for other machines. No authentication."
)
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0 takes a free one.", 0, 65535)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the policy's noise.", lower_bound=0)


def main(_: list[str]) -> None:
    import threading

    import numpy as np

    from qam_jax.deploy import load_policy
    from qam_jax.deploy.server import make_server

    policy = load_policy(_RUN.value, _STEP.value, _SEED.value)
    policy.act_chunk(np.zeros(policy.observation_dim, np.float32))  # compiles
    server = make_server(policy, _HOST.value, _PORT.value)
    # A server can only be closed once it serves, so it does before a signal may end the rest.
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with server:
        host, port = server.socket.getsockname()[:2]
        print(f"Serving {policy.metadata['method']} at ws://{host}:{port}", flush=True)
        thread.join()


if __name__ == "__main__":
    run_main(main, stopped="All clients are disconnected.")
