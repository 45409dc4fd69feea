"""Completions from a causal language model: the engine that training and evaluation share."""
