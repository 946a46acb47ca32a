"""Operations of our own: C++ for CPUs and compiled PyTorch for GPUs, how they are built, loaded and checked."""
