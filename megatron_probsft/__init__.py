"""Supervised fine-tuning on Megatron-Core with any function of the label probability as objective."""

from megatron_probsft.domains.registry import domains as _domains

_domains()  # so that their templates are known by name wherever text is encoded
