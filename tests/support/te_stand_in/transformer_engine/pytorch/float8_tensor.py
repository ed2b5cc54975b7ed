"""The older name of a module."""

from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor as Float8Tensor
