"""The paper as data: networks, recipes and printed numbers. Nothing here imports torch."""
