"""How signal and gradient travel through a network: the paper's equations, measured, and what follows from them."""
