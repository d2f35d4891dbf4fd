"""Training steps and inference of masked networks on one thread, in CPU time: for shared machines.

    python benchmarks/cpu_time.py vgg19-cifar force-0.01.safetensors force-0.001.safetensors

Ours in float32 and bfloat16, all layers sparse, against the masked dense network in float32 (a) and in bfloat16,
channels last (b), all taking turns. What counts is this thread's computing time, the minimum over all rounds:
waiting for others does not count, though they still share caches and memory. `skeletal bench` takes wall-clock times.
"""

import argparse
import time

import torch

import skeletal
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.bench import Setting
from skeletal.harness.bench.contest import interleaved
from skeletal.harness.bench.contestants import masked_copy, stepper
from skeletal.harness.store.environment import environment


def ways(setting, mask):
    """Contestants by name."""
    model, (inputs, targets) = setting.network(), setting.batch()
    found = {}
    for name, bf16 in (("ours", False), ("ours16", True)):
        fast = skeletal.compile(model, mask, inputs, path="sparse")
        found[name] = stepper(fast, inputs, targets, about=name, bf16=bf16, copied=False)
    found["a"] = stepper(masked_copy(model, mask), inputs, targets, about="a")
    last = inputs.contiguous(memory_format=torch.channels_last)
    found["b"] = stepper(masked_copy(model, mask, channels_last=True), last, targets, about="b", bf16=True)
    return found


def least(calls, rounds):
    """Milliseconds of each, the least of some rounds after one that does not count."""
    times = interleaved(calls, rounds, time.thread_time)
    return {name: 1000 * min(found) for name, found in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("masks", nargs="+")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    where = environment()
    print(", ".join(f"{key} {where[key]}" for key in ("cpu", "versions", "date")))
    setting = Setting(model=arguments.model, batch_size=arguments.batch_size)
    for path in arguments.masks:
        with flush_denormals():
            found = ways(setting, skeletal.Mask.load(path))
            ratios = [f"{other} / {ours}" for ours in ("ours", "ours16") for other in "ab"]
            print(f"\n{path}\n\n{markdown_head(['', *found, *ratios])}")
            for what in ("train", "infer"):
                ms = least({name: getattr(way, what) for name, way in found.items()}, arguments.rounds)
                ratios = [ms[other] / ms[ours] for ours in ("ours", "ours16") for other in "ab"]
                cells = [*(f"{value:.1f}" for value in ms.values()), *(f"{ratio:.2f}" for ratio in ratios)]
                print(markdown_row([what, *cells]), flush=True)


if __name__ == "__main__":
    main()
