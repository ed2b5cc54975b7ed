"""How fast is a data set tokenized? The whole pass, rows to written store, against the library's batch call.

    python benchmarks/tokenization.py --json FILE

`megatron_probsft` is `build_token_store` on a jsonl file: reading, chat template, tokens, checks, files on
the disk. `encode_batch` and `encode_batch_fast` are the tokenizers library's calls on the same rendered
strings, with as many threads as the store has processes. gsm_symbolic and figlet_font; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measure import hardware, interleaved_medians, show, timed, write_json
from megatron_probsft.data.store.options import StoreOptions
from megatron_probsft.data.store.token_store import build_token_store
from megatron_probsft.data.tokenizers.load import load_tokenizer

COLUMNS = {
    "implementation": "{implementation}",
    "data": "{data}",
    "rows": "{rows}",
    "tokens": "{tokens}",
    "seconds": "{seconds:.2f}",
    "tokens/s": "{tokens_per_second:,.0f}",
    "÷ encode_batch": "{ratio_to_encode_batch:.2f}",
}
DATA = {"word_problems": "gsm_symbolic", "figlet": "figlet_font"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", default="runs/models/SmolLM2-135M-Instruct", help="model folder")
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5, help="timed, after one to warm up")
    parser.add_argument("--json", help="write the records here")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.cores)  # before the library's first batch
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    records = [record for data in DATA for record in _measure(data, args)]
    show(f"tokenizing with {Path(args.tokenizer).name}, {hardware()['hardware']}", COLUMNS, records)
    write_json(args.json, records)


def _measure(data: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    import reasoning_gym

    items = reasoning_gym.create_dataset(DATA[data], size=args.rows, seed=1)
    pairs = [(item["question"], item["answer"]) for item in items]
    tokenizer = load_tokenizer(args.tokenizer)
    library = tokenizer.backend_tokenizer
    library.no_truncation()
    library.no_padding()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt, _ in pairs
    ] + [response for _, response in pairs]
    tokens = {}

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                store = build_token_store(
                    [str(file)], tokenizer, StoreOptions("chat", 8192, len(tokenizer)), cache_dir=cache,
                    num_workers=args.cores, log=lambda _: None,
                )  # fmt: skip
                tokens["megatron_probsft"] = len(store.tokens) - len(store)  # EOS is not the library's

        def theirs(name: str) -> None:
            encoded = getattr(library, name)(texts, add_special_tokens=False)
            tokens[name] = sum(len(one) for one in encoded)

        runs = {
            "megatron_probsft": lambda: {"seconds": timed(ours)},
            "encode_batch": lambda: {"seconds": timed(lambda: theirs("encode_batch"))},
            "encode_batch_fast": lambda: {"seconds": timed(lambda: theirs("encode_batch_fast"))},
        }
        medians = interleaved_medians(runs, args.rounds)
    assert len(set(tokens.values())) == 1, tokens
    reference = medians["encode_batch"]["seconds"]
    return [
        {
            "implementation": name, "data": data, "rows": args.rows, "tokens": tokens[name],
            "seconds": median["seconds"], "tokens_per_second": tokens[name] / median["seconds"],
            "ratio_to_encode_batch": reference / median["seconds"], "cores": args.cores,
            "tokenizer": Path(args.tokenizer).name, **hardware(),
        }
        for name, median in medians.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
