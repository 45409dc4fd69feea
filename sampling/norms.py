"""RMS norms by PyTorch's fused kernel, while sampling on a GPU: one launch where a model's own module makes eight.

Qwen2.5-0.5B has 49 of them in a step of a thousand kernels. Part of the sampler of "Probability Smoothing Policy
Optimisation" (arXiv 2509.21282).
"""

from contextlib import contextmanager
from functools import partial

import torch


@contextmanager
def fused_norms(model):
    """The RMS norms of a model on a GPU are computed by torch.nn.functional.rms_norm; put back at the end.

    Only those that give the same on numbers drawn here, but for rounding: some families scale by 1 + weight.
    """
    modules = [m for m in model.modules() if hasattr(m, "variance_epsilon") and hasattr(m, "weight")]
    modules = [m for m in modules if m.weight.device.type == "cuda" and "forward" not in vars(m)]
    kinds = {type(module): module for module in modules}
    same = {kind for kind, module in kinds.items() if computes_rms_norm(module)}
    fused = [module for module in modules if type(module) in same]
    for module in fused:
        module.forward = partial(rms_norm, module)
    try:
        yield
    finally:
        for module in fused:
            del module.forward


def rms_norm(module, hidden_states):
    """hidden_states [..., size], divided by their root mean square and multiplied by the module's weight [size]."""
    return torch.nn.functional.rms_norm(
        hidden_states, hidden_states.shape[-1:], module.weight.to(hidden_states.dtype), module.variance_epsilon
    )


def computes_rms_norm(module):
    """Whether rms_norm gives what the module does on 8 random rows, but for rounding."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, len(module.weight), generator=generator).to(module.weight)
    own = module(rows)
    fused = rms_norm(module, rows)
    return own.dtype == fused.dtype and torch.allclose(own, fused, rtol=4 * torch.finfo(own.dtype).eps, atol=1e-6)
