"""Settings that say which data are trained on, and how they become tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.training.config.flag import flag


@dataclass(frozen=True)
class DataSettings:
    """The data, and the way they become tokens."""

    data: list[str] = flag(
        [],
        "The training data: .jsonl or .parquet files, folders written by Dataset.save_to_disk "
        "(folder:split), or data sets of the hub (owner/name:config:split).",
    )
    data_weights: list[float] | None = flag(
        None,
        "Each of --data provides this share of the training samples. Without it every sample is seen once "
        "per epoch.",
        resume="same",
    )
    valid_data: list[str] = flag([], "The validation data, named in the same way as --data.")
    template: str = flag(
        "chat",
        "This template turns a sample into text. chat is the chat template of the model's tokenizer, plain "
        f"adds nothing; the others are {', '.join(NAMED_TEMPLATES)}.",
    )
    template_date: str | None = flag(
        None,
        "A chat template that prints today's date prints this one (YYYY-MM-DD). Without it, that is the day "
        "on which the run started, also after a resume and in the evaluation.",
    )
    prompt_key: str = flag(
        "prompt",
        "The column of this name holds the prompt. Dots reach into nested columns: extra_info.question.",
    )
    response_key: str = flag("response", "The column of this name holds the response.")
    messages_key: str = flag(
        "messages",
        "The column of this name holds chat messages. It is used where there is no prompt column.",
    )
    weight_key: str | None = flag(
        None, "The column of this name holds a number that weighs the tokens of its row in the loss."
    )
    truncation: Literal["error", "drop", "left", "right"] = flag(
        "error",
        "This happens to samples that are longer than --seq-length: error stops the run, drop leaves them "
        "out, left and right cut that end off.",
    )
    data_cache_path: str | None = flag(
        None, "Tokenized data are kept in this folder. Without it, that is data_cache beside --save."
    )
    num_workers: int | None = flag(
        None,
        "This many processes tokenize. Without it there are up to 8, by the number of rows and cores.",
        above=0,
    )
