"""Programs import Megatron-Core through these: some of its own imports take seconds or fail."""
