"""A model's matrices in the number type of autocast, copied once for a generation instead of cast at every token.

For "Probability Smoothing Policy Optimisation" (arXiv 2509.21282), which trains fp32 weights under bf16 autocast.
Autocast rounds the weights of a matrix product and leaves the rest in fp32 (norms, embeddings, the sums between
layers); the copies are what it would make, so that the sampler stays the policy that is trained.
"""

import sys
from contextlib import contextmanager, nullcontext

import torch
from transformers.pytorch_utils import Conv1D


class MatrixCopies:
    """The copies of one model, kept for a whole run: a CUDA graph reads them where they are."""

    def __init__(self):
        self.model = None
        self.dtype = None
        self.places = []
        self.copies = []

    @contextmanager
    def in_place(self, model):
        """The copies, made anew from the weights as they are now, stand in the model; nothing happens without autocast.

        Where there is no memory for them, it says so once, and autocast casts as it always does.
        """
        device = model.get_input_embeddings().weight.device.type
        if not torch.is_autocast_enabled(device):
            yield
            return
        dtype = torch.get_autocast_dtype(device)
        self._copy(model, dtype)
        originals = [module._parameters[name] for module, name in self.places]
        try:
            self._put(self.copies)
            # no cache: a graph would read casts that are freed when autocast ends
            with torch.autocast(device, dtype, cache_enabled=False) if self.copies else nullcontext():
                yield
        finally:
            self._put(originals)

    def _copy(self, model, dtype):
        if model is not self.model or dtype is not self.dtype:
            self.model = model
            self.dtype = dtype
            self.places = find_matrices(model, dtype)
            try:
                self.copies = [torch.empty_like(m._parameters[name], dtype=dtype) for m, name in self.places]
            except torch.OutOfMemoryError:
                print(
                    f"no memory for copies of the matrices in {dtype}: sampling casts at every token", file=sys.stderr
                )
                self.places = []
                self.copies = []
        if self.places:
            torch._foreach_copy_(self.copies, [module._parameters[name] for module, name in self.places])

    def _put(self, tensors):
        for (module, name), tensor in zip(self.places, tensors, strict=True):
            module._parameters[name] = tensor


def find_matrices(model, dtype):
    """[(module, name)] of the parameters that autocast to `dtype` would cast: those of linear layers."""
    linear = [module for module in model.modules() if type(module) in (torch.nn.Linear, Conv1D)]
    found = [(module, name) for module in linear for name in module._parameters]
    return [(m, name) for m, name in found if (p := m._parameters[name]) is not None and p.dtype == torch.float32]
