"""Which engine answers faster here, our own sampler or vLLM? Both answer the same prompts, and the faster one stays.

Used by maths_evaluations.py --backend auto on a GPU where vLLM is installed (Probability Smoothing Policy Optimisation,
arXiv 2509.21282).
"""

import gc
import math
import sys
import time

TRIAL = "trial"
ENOUGH = 8  # batches; an evaluation of fewer has ended before vLLM has started
WARM_UP = 8  # requests that are not timed: kernels are compiled and graphs captured for them


def time_engine(make, requests, temperature):
    """(what make() returned, the seconds in which it answers the requests)."""
    answer = make()
    answer(requests[:WARM_UP], temperature, ignore)
    begun = time.perf_counter()
    answer(requests, temperature, ignore)
    return answer, time.perf_counter() - begun


def ignore(place, completions):
    """In place of a function that stores completions."""


def free_memory():
    """Give back to the card what the engine had that is no longer referred to."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def try_engines(make, requests, temperature):
    """(name, engine) of the faster one. make(name): the engine "transformers", which is ours, or "vllm".

    Ours goes first and is made again if it wins: it starts in seconds, and vLLM wants the card for itself. A vLLM that
    cannot start or answer here is named, and loses.
    """
    ours = time_engine(lambda: make("transformers"), requests, temperature)[1]  # the engine itself is not kept
    free_memory()
    answer = None
    theirs = math.inf
    try:
        answer, theirs = time_engine(lambda: make("vllm"), requests, temperature)
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        print(f"vllm failed on the first batch: {str(error).strip()[:200]}", file=sys.stderr)
    winner = "vllm" if theirs < ours else "transformers"
    times = f"transformers {ours:.2f} s, vllm {theirs:.2f} s" if answer else "vllm failed"
    print(f"backend: {winner} (a first batch of {len(requests)}: {times})", file=sys.stderr)
    if winner == "transformers":
        del answer
        free_memory()
        answer = make(winner)
    return winner, answer
