"""Longspan's kernels timed beside named peers, in one run on one machine, kept as JSON with everything needed to repeat it."""
