"""A GPU that computes nothing: whole steps run on fake CUDA tensors, and it is noted where the host waits."""
