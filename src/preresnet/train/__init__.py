"""One training run: optimiser, loop, log, checkpoint."""
