"""A grid on a cluster: the queue and the checks before anything is queued, beside env.sh and the batch scripts."""
