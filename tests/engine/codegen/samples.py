"""Small kernels out of what all kernels are made of, run by the CPU that numba is told; prints what came of it.

`python -m tests.engine.codegen.samples [arm]`, with `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`. With "arm" what only x86
has is left out, and the code is made once more, for ARM.
"""

import json
import platform
import re
import sys

import numpy as np
import torch
from llvmlite import binding
from numba import njit

ARM = "arm" in sys.argv
if ARM:
    platform.machine = lambda: "aarch64"  # before what asks for it is loaded

from skeletal.engine.codegen import amx, tiles  # noqa: E402
from skeletal.engine.codegen.packed_bf16 import (  # noqa: E402
    LANES,
    examples_of,
    flush,
    read,
    restore,
    slots,
    tight,
    write,
)
from skeletal.engine.codegen.row_ops import affine, affine_gradient  # noqa: E402
from skeletal.engine.codegen.transpose import transpose_square  # noqa: E402

tiles._KINDS = [(1, 2, 1), (1, 1, 1), (1, 2, None)]  # three of the 21 kinds of tiles, as much code each

# As `compiling.compiled`, but not kept; and nothing in it owns memory, whose counting is code for x86.
kernel = njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}, _nrt=False)


@kernel
def sample(x, held, dense, offsets, values, out, z, slopes, back, sums, relu, valid):
    """Cells held for many readers, a tile of them through all that can follow it, its weights' gradients; a norm's row
    and its gradient."""
    lanes, one, none = offsets[1], values.dtype.type(1), values.dtype.type(0)
    old = flush(held)
    affine(0, x, held, x, 0, 0, len(values) + 1, one, none, valid + 3, 0)
    tiles.product(
        0, 0, held, 0, 0, lanes, out, 0, 0, lanes, offsets, values, 0, len(values),
        1, values[0], values[1], dense, 1, relu, valid, out, 0,
    )  # fmt: skip
    tiles.inner(0, held, 0, 0, lanes, dense, 0, 0, lanes, offsets, sums, 0, len(values))
    restore(held, old)
    affine(3 * relu, dense, z, dense, 0, 0, 2, values[1], values[2], valid, 0)
    affine_gradient(
        1, dense, z, slopes, back, back, 0, 0, 2, values[0], values[1], values[2], values[0], values[1], valid, 0
    )


@kernel
def turned(source, target):
    transpose_square(source, 0, LANES, target, 0, LANES)


@kernel
def one_by_one(source, target):
    for i in range(len(source)):
        write(target, i, read(source, i) * np.float32(1.01))


def differences(dtype):
    """Of each result, in its own type: how far it is from what torch computes in double precision."""
    generator = torch.Generator().manual_seed(0)
    examples, taps = examples_of(dtype), 3
    valid = examples - 3

    def some(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x, dense, slopes = some(taps + 1, examples), some(2, examples), some(2, examples)
    values = torch.randn(taps, generator=generator)
    out, z, back = (torch.full((2, examples), float("nan"), dtype=dtype) for _ in range(3))
    sums = torch.zeros(taps, LANES)
    offsets = np.arange(taps, dtype=np.int32) * LANES
    held = tight(np.empty_like(slots(x)))
    sample(
        slots(x), held, slots(dense), offsets, values.numpy(), slots(out), slots(z), slots(slopes), slots(back),
        sums.numpy().reshape(-1), 1, valid,
    )  # fmt: skip

    a, b, c = values.double()
    wide, beside = x.double(), dense.double()
    there = torch.arange(examples) < valid
    total = sum(values[j].double() * wide[j : j + 2] for j in range(taps))
    opened = slopes.double() * (a * beside + b > 0)
    truths = {
        "tile": (out, (total * a + b + beside).relu() * there),
        "sums": (sums.sum(1), torch.stack([(wide[j : j + 2] * beside).sum() for j in range(taps)])),
        "row": (z, (b * beside + c + beside).relu() * there),
        "gradient": (back, (c * opened + a * beside + b) * there),
    }
    single = some(40)
    written = torch.empty_like(single)
    bits = torch.int16 if dtype == torch.bfloat16 else dtype
    one_by_one(single.view(bits).numpy(), written.view(bits).numpy())
    truths["number by number"] = (written, single.double() * np.float32(1.01).item())
    return {name: float(((f.double() - t).abs() / (t.abs() + 1)).max()) for name, (f, t) in truths.items()}


def for_arm(kernel):
    """Machine code of a kernel for a CPU with vectors of 128 bits."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    machine = binding.Target.from_triple(triple).create_target_machine(cpu="neoverse-n1", opt=2)
    for llvm in kernel.inspect_llvm().values():
        module = binding.parse_assembly(re.sub(r'^target .*$|"target-[a-z]+"="[^"]*"', "", llvm, flags=re.MULTILINE))
        module.triple, module.data_layout = triple, str(machine.target_data)
        module.verify()
        yield machine.emit_assembly(module)


def main():
    off = {str(dtype): differences(dtype) for dtype in (torch.float32, torch.bfloat16)}
    square = np.arange(LANES * LANES, dtype=np.float32).reshape(LANES, LANES)
    flipped = np.empty_like(square)
    turned(square.reshape(-1), flipped.reshape(-1))
    made = list(sample.inspect_asm().values())
    found = {
        "lanes": LANES,
        "matrix unit": amx.available(),
        "off": off,
        "turned": bool((flipped == square.T).all()),
        "rounds": [len(re.findall("vcvtne2?ps2?bf16", code)) for code in made],
        "wide": [code.count("%zmm") for code in made],
        "fused": [len(re.findall("vf[n]?m", code)) for code in made],
        "arm": [[code.count("fmla"), "llvm.x86" in code] for code in for_arm(sample)] if ARM else [],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
