"""A bare SentencePiece `tokenizer.model` behind transformers' tokenizer interface."""

from __future__ import annotations

import hashlib
import re
from itertools import groupby
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]
from transformers import BatchEncoding
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class SentencePieceTokenizer(SentencePieceBackend):
    """A tokenizer that loads and saves as transformers' do, but sentencepiece alone tokenizes.

    A text gets the ids of `SentencePieceProcessor.encode`, whatever is in it: "<s>" in a text is text. Added
    tokens that are not special, which sentencepiece does not know, are found in every text. With
    `split_special_tokens=False`, as for what a chat template renders, special and control tokens are found
    too, and each text between them is encoded by itself: with sentencepiece's dummy prefix, or, where
    tokenizer_config.json says `"legacy": false`, with it at the start of the whole text only.

    Where tokenizer_config.json is silent, BOS and EOS are the model's own, `add_bos_token` is true and
    `add_eos_token` false, as for Llama. `decode` is sentencepiece's for each run between special tokens and
    so gives back a text that was encoded by itself: of the dummy prefix, no space is left.
    """

    def __init__(self, **kwargs: Any) -> None:
        model = SentencePieceProcessor(model_file=kwargs["vocab_file"])
        for name, index in (("unk", model.unk_id()), ("bos", model.bos_id()), ("eos", model.eos_id())):
            if index >= 0:
                kwargs.setdefault(f"{name}_token", model.id_to_piece(index))
        kwargs["split_special_tokens"] = True  # some tokenizer_config.json hold transformers' default, false
        legacy = kwargs.pop("legacy", None)
        bos = kwargs.get("add_bos_token") is not False and kwargs.get("bos_token") is not None
        ends = ["bos"] * bos + ["eos"] * bool(kwargs.get("add_eos_token"))
        kwargs["special_tokens_pattern"] = "_".join(ends) or "none"
        super().__init__(**kwargs, legacy=True)  # otherwise the base class changes the model
        self.legacy = self.init_kwargs["legacy"] = legacy is not False
        self._load(model.serialized_model_proto())

    def identity(self) -> dict[str, Any]:
        """Return all that decides which ids a text gets, as JSON can hold it."""
        return {
            "model": hashlib.blake2b(self.sp_model.serialized_model_proto()).hexdigest(),
            "added": {index: repr(token) for index, token in self.added_tokens_decoder.items()},
            "pattern": self.special_tokens_pattern,
            "legacy": self.legacy,
        }

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply the template as transformers does; tokens that the rendered text spells are those tokens."""
        more = {"split_special_tokens": False, **(kwargs.pop("tokenizer_kwargs", None) or {})}
        return super().apply_chat_template(conversation, *args, tokenizer_kwargs=more, **kwargs)

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.convert_ids_to_tokens(self._ids([text], kwargs.get("split_special_tokens", True))[0])

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in ("sp_model", "_inner")}
        return {**state, "_proto": self.sp_model.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        proto = state.pop("_proto")
        self.__dict__.update(state)
        self._load(proto)

    def _load(self, proto: bytes) -> None:
        """Make the processor of a text's start, and the one of what follows a special token."""
        self.sp_model = self._inner = model = SentencePieceProcessor(model_proto=proto)
        self._controls = {model.id_to_piece(i): i for i in range(len(model)) if model.is_control(i)}
        parsed = ModelProto.FromString(proto)
        self.dummy_prefix = parsed.normalizer_spec.add_dummy_prefix
        if not self.legacy:
            parsed.normalizer_spec.add_dummy_prefix = False
            self._inner = SentencePieceProcessor(model_proto=parsed.SerializeToString())

    def _tokens_in_text(self, special: bool) -> dict[str, int]:
        """Return the tokens to look for in a text: added ones, with `special` special and control ones."""
        added = {token.content: index for index, token in self._added_tokens_decoder.items()}
        if special:
            return self._controls | added
        hidden = set(self.all_special_tokens) | self._controls.keys()
        hidden |= {token.content for token in self._added_tokens_decoder.values() if token.special}
        return {token: index for token, index in added.items() if token not in hidden}

    def _ids(self, texts: list[str], split_special_tokens: bool) -> list[list[int]]:
        known = self._tokens_in_text(not split_special_tokens)
        if not known:
            return self.sp_model.encode(texts)
        longest_first = sorted(map(re.escape, known), key=len, reverse=True)
        pattern = re.compile(f"({'|'.join(longest_first)})")
        result = []
        for text in texts:
            ids: list[int] = []
            for number, part in enumerate(pattern.split(text)):
                if number % 2:
                    ids.append(known[part])
                elif part:
                    ids += (self.sp_model if number == 0 else self._inner).encode(part)
            result.append(ids)
        return result

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        texts = [text] if isinstance(text, str) else list(text)
        if text_pair is not None or not all(isinstance(one, str) for one in texts):
            raise NotImplementedError(f"{type(self).__name__} takes one text or a list of texts")
        padding, truncation = kwargs.pop("padding_strategy"), kwargs.pop("truncation_strategy")
        split, tensors = kwargs.pop("split_special_tokens"), kwargs.pop("return_tensors", None)
        mask = kwargs.pop("return_attention_mask", None) is not False
        encoded = [
            self.prepare_for_model(ids, truncation=truncation.value, return_attention_mask=False, **kwargs)
            for ids in self._ids(texts, split)
        ]
        batch: Any = {
            key: [one[key] for one in encoded] for key in (encoded[0] if encoded else ["input_ids"])
        }
        batch = self.pad(batch, padding.value, kwargs.get("max_length"), return_attention_mask=mask)
        if isinstance(text, str):
            batch = {key: value[0] for key, value in batch.items()}
        return BatchEncoding(dict(batch), tensor_type=tensors, prepend_batch_axis=isinstance(text, str))

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """Decode ids; those beyond the vocabulary, which a model with padded rows may choose, are nothing."""
        spelled = {index: token for token, index in self._tokens_in_text(special=True).items()}
        spelled.pop(self.sp_model.unk_id(), None)  # sentencepiece has its own sign for it
        skipped = {*self.all_special_ids, *self._controls.values()} if skip_special_tokens else set()
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        ids = [i for i in ids if i not in skipped and (i in spelled or 0 <= i < len(self.sp_model))]
        text, model = "", self.sp_model
        for special, run in groupby(ids, spelled.__contains__):
            part = list(run)
            text += "".join(spelled[i] for i in part) if special else model.decode(part)
            model = self._inner
        return text
