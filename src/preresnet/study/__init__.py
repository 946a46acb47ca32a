"""Experiments over whole networks: speed and memory against other systems."""
