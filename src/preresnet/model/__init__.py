"""The network family in PyTorch: one residual unit that interprets a specification."""
