"""Supervised fine-tuning on Megatron-Core with any function of the label probability as objective."""

import logging
import warnings

from megatron_probsft.domains.registry import domains as _domains

# Said at import by Megatron-Core and torch on machines where the CPU path is meant.
warnings.filterwarnings("ignore", message="(Transformer Engine and )?Apex (are|is) not installed")
warnings.filterwarnings("ignore", message="invalid escape sequence", category=SyntaxWarning)
warnings.filterwarnings("ignore", message="full scope is deprecated")
warnings.filterwarnings("ignore", message="MimoModelConfig is experimental")
# Megatron-Core 0.19.2 uses these names, and so do we while torch 2.11 is supported.
warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
for _category in (UserWarning, FutureWarning):  # of torch's loader, about how Megatron-Core calls it
    warnings.filterwarnings("ignore", category=_category, module=r"torch\.distributed\.checkpoint")
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
logging.getLogger("megatron.core.dist_checkpointing.strategies").setLevel(logging.ERROR)

_domains()  # so that their templates are known by name wherever text is encoded
