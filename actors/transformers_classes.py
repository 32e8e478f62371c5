"""transformers' classes as they were before vLLM put its compilation into them."""

from __future__ import annotations

import inspect
from typing import Any


def restore(model: Any) -> None:
    """For the classes that a model of vLLM's is made of.

    Some architectures, such as GPT-NeoX and Phi, vLLM runs through transformers' own code: it gives the class another
    constructor and call, with which a plain model of that class, made before or after in the same process, fails. The
    engine's own model keeps what it was made with.
    """
    for found in {type(module) for module in model.modules()}:
        if found.__module__.startswith("transformers.") and found.__init__.__module__.startswith("vllm."):
            found.__init__ = inspect.getclosurevars(found.__init__).nonlocals["old_init"]
            # What the other call asks first; the engine's model has an answer of its own.
            found.do_not_compile = True
