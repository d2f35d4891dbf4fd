"""Two processes with synchronised batch norm, each with half of every batch, find the mask of one with whole batches.

Only on GPUs, because torch's SyncBatchNorm knows nothing else; two gloo processes share the one that is there.
"""

import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

import skeletal
from tests.cases import convnet, images


def whole():
    return [(x.double(), y) for x, y in images(4)]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(convnet().double()).cuda()
    halves = [(x[6 * rank : 6 * rank + 6], y[6 * rank : 6 * rank + 6]) for x, y in whole()]
    for method, steps in (("snip", 1), ("force", 4)):
        skeletal.prune(model, halves, density=0.1, method=method, steps=steps).save(
            f"{folder}/{method}-{rank}.safetensors"
        )
    dist.destroy_process_group()


def test_masks_are_those_of_one_process(tmp_path):
    start_processes(work, (str(tmp_path),), nprocs=2, start_method="spawn")
    for method, steps in (("snip", 1), ("force", 4)):
        alone = skeletal.prune(convnet().double().cuda(), whole(), density=0.1, method=method, steps=steps)
        for rank in (0, 1):
            assert skeletal.Mask.load(tmp_path / f"{method}-{rank}.safetensors").digest == alone.digest
