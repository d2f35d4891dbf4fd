"""What `availability.available` runs in another process."""

import json
import os
import sys


def main() -> None:
    """Print a JSON object with the `reason` that the kernels of a type of maps cannot be used, or None."""
    out = os.dup(1)
    os.dup2(2, 1)  # whatever is printed on the way is not the answer
    try:
        import numba  # noqa: F401 - before torch, which takes seconds to load, and need not where this fails
        import torch

        from skeletal.engine.host.layers import mismatch

        torch.set_num_threads(2)
        reason = mismatch(getattr(torch, sys.argv[2]))
    except Exception as error:
        what = "do not load" if isinstance(error, ImportError) else "do not compile"
        first = (str(error).strip().splitlines() or [""])[0]
        reason = f"its kernels {what}: {type(error).__name__}: {first[:200]}"
    os.write(out, json.dumps({"reason": reason}).encode())
