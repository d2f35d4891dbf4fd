"""Processes forked from a server that has imported everything, as importing takes longer than most of them run."""

import multiprocessing

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "skeletal.harness.runs.experiment", "skeletal.engine.lower", "accelerate", "torch._dynamo",
        "torch.distributed.tensor", "numba.typed", "sklearn.model_selection",
    ]
)  # fmt: skip
