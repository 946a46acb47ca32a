"""Experiments of many runs: the paper's tables again, sweeps, reports."""
