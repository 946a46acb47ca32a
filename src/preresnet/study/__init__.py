"""Experiments of many runs: tables of the paper again, and sweeps."""
