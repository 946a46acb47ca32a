"""Real images as uint8 tensors on the training device, and seeded batches of them."""
