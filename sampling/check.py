"""Is the sampler right? Its log-probabilities against those of one ordinary forward pass over the same tokens.

For the runs of "Probability Smoothing Policy Optimisation" (arXiv 2509.21282): training and evaluation start with
`check_sampler`, on the device at hand, so a wrong position, mask or cache stops a run before it has cost anything.
"""

import torch

from common.files import BadInput
from sampling.engine import OTHER_SAMPLERS

# Mean absolute difference of a token's log-probability that rounding explains, by number type: logits of some 20 are
# kept to 2^-19, 2^-6 and 2^-3; a wrong position, mask or cache moves it by about 1.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
CHECKED_ROWS = 4  # of a generation: a hundredth of its time


def forward_logps(model, rows, temperature):
    """Log-probabilities of completions by one ordinary forward pass without a cache: float32 [all their tokens].

    rows: (prompt, completion) pairs of token ids. Padding is on the right, where causal attention never looks at it.
    """
    device = model.get_input_embeddings().weight.device
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.tensor([[*p, *c, *[0] * (width - len(p) - len(c))] for p, c in rows], device=device)
    was_training = model.training
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    model.train(was_training)
    found = []
    for row, (p, c) in zip(logits, rows, strict=True):  # one at a time, without the prompt: a vocabulary is wide
        logps = torch.log_softmax(row[len(p) - 1 : len(p) + len(c) - 1].float() / (temperature or 1), -1)
        found.append(logps.gather(1, torch.tensor(c, device=device)[:, None])[:, 0])
    return torch.cat(found).cpu()


def logp_difference(model, requests, completions, temperature):
    """Mean |log-probability the sampler had - that of a forward pass|, over some rows, the longest among them.

    Raises ValueError where there is no completion.
    """
    pairs = [(r.ids, c) for r, group in zip(requests, completions, strict=True) for c in group]
    longest = max(pairs, key=lambda pair: len(pair[1].ids))
    pairs = [longest, *pairs[:: max(1, len(pairs) // CHECKED_ROWS)]][:CHECKED_ROWS]
    ours = torch.tensor([logp for _, c in pairs for logp in c.logps])
    return (ours - forward_logps(model, [(ids, c.ids) for ids, c in pairs], temperature)).abs().mean().item()


def check_sampler(model, requests, completions, temperature):
    """The logp_difference; raises BadInput if it is more than the rounding of the number type in use explains."""
    weight = model.get_input_embeddings().weight
    autocast = torch.is_autocast_enabled(weight.device.type)
    dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
    difference = logp_difference(model, requests, completions, temperature)
    if not difference <= TOLERANCE[dtype]:
        raise BadInput(
            f"the sampler disagrees with the model on this device: the log-probabilities of its tokens differ by "
            f"{difference:.2g} on average, where rounding explains {TOLERANCE[dtype]:g}; {OTHER_SAMPLERS}"
        )
    return difference
