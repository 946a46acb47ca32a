"""Speed and memory of a network beside other implementations of it."""
