"""FP8 tensors: none is ever made here."""

from transformer_engine.pytorch.tensor import QuantizedTensor


class Float8Tensor(QuantizedTensor): ...
