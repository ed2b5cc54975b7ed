"""All patches are put in place here, except two with a single caller each.

Those are `compile_decorators` (a program's imports) and `results_queue` (a checkpoint's writing).
"""

from __future__ import annotations

import functools

from megatron.core.optimizer import MegatronOptimizer

from megatron_probsft.runtime.device import has_gpu
from megatron_probsft.runtime.megatron_patches import (
    gradient_norm,
    nonfinite_gradients,
    torch_adam,
    weight_gradient_fusion,
)
from megatron_probsft.runtime.megatron_patches.without_gpu import (
    cuda_factories,
    cuda_functions,
    rng_tracker,
    tensor_type_names,
    token_dispatcher,
    uneven_collectives,
)

WITHOUT_GPU = (
    cuda_functions,
    cuda_factories,
    rng_tracker,
    tensor_type_names,
    token_dispatcher,
    uneven_collectives,
)


@functools.cache
def patch_for_cpu() -> None:
    """Make Megatron-Core usable on a machine without a GPU; call it before groups, models and optimizers.

    Nothing is changed where there is a GPU. Elsewhere only names are replaced that would raise there, so
    nothing that works changes its meaning, and one of them that no longer exists is an error.
    """
    if has_gpu():
        return
    for patch in WITHOUT_GPU:
        patch.apply()


def patch_linear_layers() -> None:
    """Let linear layers add their weights' gradients to main_grad; call it before they are built."""
    weight_gradient_fusion.apply()


def patch_optimizer(optimizer: MegatronOptimizer) -> None:
    """Make an optimizer resume exactly, and skip steps whose gradient is not finite."""
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        torch_adam.apply(inner)
    nonfinite_gradients.apply(optimizer)
    gradient_norm.apply()
