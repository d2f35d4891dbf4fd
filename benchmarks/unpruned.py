"""A network with all its weights in bfloat16: the engine against torch, training steps and inference, taking turns.

    python benchmarks/unpruned.py --model resnet50-cifar [--repeat 5]

Times are medians of the second of two calls each, with the fastest and slowest. Before them comes the time that the
engine takes to plan and for its first step, with kernels loaded from disk.
"""

import argparse
import statistics

import torch

import skeletal
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.bench.contest import interleaved
from skeletal.harness.bench.contestants import seconds, stepper
from skeletal.harness.bench.setting import Setting
from skeletal.harness.store.environment import environment


def contestants(setting):
    """Ways to train and run the same network, by name."""
    inputs, targets = setting.batch()
    fast = skeletal.compile(setting.network(), None, inputs, path="sparse", dtype=torch.bfloat16)
    ways = {"engine": stepper(fast, inputs, targets, about="", bf16=True, copied=False)}
    orders = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
    for name, order in orders.items():
        model = setting.network().to(memory_format=order)
        images = inputs.contiguous(memory_format=order)
        ways[f"torch, {name}"] = stepper(model, images, targets, about="", bf16=True)
    return ways


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50-cifar")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    where = environment()
    print(", ".join(f"{key} {where[key]}" for key in ("cpu", "threads", "versions", "date")))
    print(f"{arguments.model}, batch {arguments.batch_size}, bfloat16, medians of {arguments.repeat}\n")
    with flush_denormals():
        ways = contestants(Setting(model=arguments.model, batch_size=arguments.batch_size))
        print(f"first step of the engine: {seconds(ways['engine'].train):.1f} s\n")
        train = interleaved({name: way.train for name, way in ways.items()}, arguments.repeat)
        infer = interleaved({name: way.infer for name, way in ways.items()}, arguments.repeat)
    print(markdown_head(["way", "training step, ms", "times ours", "inference, ms", "times ours"]))
    for name in ways:
        cells = []
        for times in (train, infer):
            median = statistics.median(times[name])
            spread = f"({1000 * min(times[name]):.0f}-{1000 * max(times[name]):.0f})"
            cells += [f"{1000 * median:.0f} {spread}", f"{median / statistics.median(times['engine']):.2f}"]
        print(markdown_row([name, *cells]))


if __name__ == "__main__":
    main()
