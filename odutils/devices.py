"""Which device computes: a GPU where there is one."""

import torch

from odutils.errors import InputError


def best_device(name: str | torch.device | None = None) -> torch.device:
    """The device called `name`; without a name a CUDA GPU, else Apple's (mps), else the CPU.

    Raises InputError if that device does not compute here.
    """
    if name is None:
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        float(torch.zeros(1, device=name))  # `meta` has shapes only, and a GPU may be there without working
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_sentence = str(error).splitlines()[0].split(". ")[0]  # torch adds a list of all that would be possible
        raise InputError(f"device {str(name)!r} cannot be used here: {first_sentence}") from None
    return torch.device(name)
