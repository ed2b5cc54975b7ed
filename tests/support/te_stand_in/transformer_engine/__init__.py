"""A stand-in for Transformer Engine on a CPU, for tests: plain torch, strict about what it is given.

Put `tests/support/te_stand_in` first on the path, and Megatron-Core takes this package for Transformer
Engine: it proves names, shapes, arguments, collectives, checkpoints and the whole of training around the
layers; of Transformer Engine's kernels it proves nothing. It was written anew after the sources of versions
2.5 to 2.18 (github.com/NVIDIA/TransformerEngine), whose argument names, types and checks it holds its caller
to: `TE_STAND_IN_VERSION` says which version's. What it was given is in `stand_in.calls`.
"""

from transformer_engine import common, pytorch
from transformer_engine.stand_in import VERSION

__all__ = ["common", "pytorch"]
__version__ = str(VERSION)
