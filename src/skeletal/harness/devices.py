"""Which device a name means."""

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is the first of CUDA, MPS and CPU that is there; anything else is torch's own name.

    Raises:
        ValueError: torch does not know the name, or the device is not in this machine.

    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not usable here ({str(error).splitlines()[0]}); cpu always is") from None
