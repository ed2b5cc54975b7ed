"""Lists the models that `--model_save_name` names: those of arXiv 2510.00526 and one that needs no hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_probsft.domains.templates import prompt_family
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.suggestions import nearest


@dataclass(frozen=True)
class Model:
    """A model that experiments know by name, and what its trainings need."""

    name: str
    """The name in paths and tables."""
    source: str
    """Hugging Face folder or hub id."""
    family: str
    """The family of its prompts: chatml, llama or deepseek."""
    lr: float
    """The peak learning rate, in every domain."""


SMOLLM2 = "smollm2-135m"

# The paper's table has models for some domains only, and llama-3.1-3b where it means llama-3.2-3b. Its
# learning rate depends on the model alone, so here every model has every domain.
MODELS = {
    model.name: model
    for model in (
        Model("qwen-2.5-math-1.5b", "Qwen/Qwen2.5-Math-1.5B", "chatml", 5e-5),
        Model("qwen-2.5-math-7b", "Qwen/Qwen2.5-Math-7B", "chatml", 5e-5),
        Model("qwen-2.5-1.5b", "Qwen/Qwen2.5-1.5B", "chatml", 5e-5),
        Model("qwen-2.5-7b", "Qwen/Qwen2.5-7B", "chatml", 5e-5),
        Model("llama-3.1-8b", "meta-llama/Llama-3.1-8B", "llama", 2e-5),
        Model("llama-3.2-3b", "meta-llama/Llama-3.2-3B", "llama", 5e-5),
        Model("deepseek-math-7b", "deepseek-ai/deepseek-math-7b-base", "deepseek", 5e-5),
        Model(SMOLLM2, "runs/models/SmolLM2-135M-Instruct", "chatml", 1e-4),
    )
}
_LR_OF_OTHERS = 5e-5


def named_model(name: str) -> Model:
    """Return the model of that name. Raises UserError with the nearest right name."""
    if name not in MODELS:
        near = nearest(name, MODELS)
        advice = f"did you mean {near}?" if near else f"use one of {', '.join(MODELS)}"
        raise UserError(f"--model-save-name {name} is unknown: {advice} Others: --model PATH_OR_ID")
    return MODELS[name]


def other_model(source: str) -> Model:
    """Return the model in a Hugging Face folder or with a hub id.

    What its files do not tell is as for most of the paper's models.

    Raises:
        UserError: neither folder nor reachable id, or a tokenizer of no family that templates are for.
    """
    hf = read_hf_model(source)
    from megatron_probsft.data.tokenizers.load import (
        load_tokenizer,  # here: it takes seconds, as transformers do
    )

    family = prompt_family(load_tokenizer(hf.folder))
    name = Path(source).name.lower()
    if name in MODELS:  # whose runs are another model's
        name += "-other"
    return Model(name, str(hf.folder.resolve()), family, _LR_OF_OTHERS)
