"""The ends of the turns in a run's training data, for its checkpoints and exports to say."""

from __future__ import annotations

from collections.abc import Callable

from megatron_probsft.checkpoint.hf.trained_turns import TrainedTurns
from megatron_probsft.data.store.turn_ends import turn_ends
from megatron_probsft.data.text.named_chat_template import named_chat_template
from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.data.tokenizers.served import served_tokenizer
from megatron_probsft.training.start.inputs import Inputs


def trained_turns(inputs: Inputs, template: str, say: Callable[[str], None]) -> TrainedTurns:
    """Return what the training data teach, and say it, with a line for each thing that servers do otherwise.

    It reads all of them: only rank 0 calls it.
    """
    tokenizer = load_tokenizer(inputs.hf.folder)
    found = turn_ends(inputs.train, tokenizer)
    say(found.describe(tokenizer))
    chat_template = None
    if template in NAMED_TEMPLATES:
        chat_template = named_chat_template(tokenizer, template)
        say(f"exports get a chat template that renders --template {template}, in place of the model's own")
    elif template == "plain" and tokenizer.chat_template:
        say(
            "exports keep the model's own chat template, which --template plain does not train: on a server "
            "use completions, not chat completions"
        )
    ends = {str(tokenizer.convert_ids_to_tokens(token)): token for token in found.counts}
    served = served_tokenizer(tokenizer, inputs.hf.folder)
    if served.named:
        say(
            f"exports name {served.named} as tokenizer class: the one that the model names reads other tokens"
        )
    return TrainedTurns(template, ends, chat_template, inputs.template_date, served.named)
