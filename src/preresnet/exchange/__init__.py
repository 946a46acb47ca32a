"""Networks in and out: the weights of other libraries, and files that other programs run."""
