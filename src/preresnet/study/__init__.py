"""Experiments of many runs: the paper's tables again, sweeps, reports, speed and memory beside other systems."""
