"""How long does --help take, and a mistake? Whole processes, by the clock.

    python benchmarks/startup.py --baseline OTHER_CHECKOUT --json FILE

Every command's --help; of the trainer, mistakes in a flag, a path and a row, also under torchrun, whose own
share is that of a program that fails at once. The baseline is another checkout, run with this interpreter;
its processes take turns with ours. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measure import Run, hardware, interleaved_medians, show, write_json

ROOT = Path(__file__).resolve().parents[1]
CONVERT = "tools/convert_checkpoint.py"
COMMANDS = [
    ["-m", "megatron_probsft.train"], [CONVERT], [CONVERT, "hf-to-megatron"], [CONVERT, "megatron-to-hf"],
    [CONVERT, "verify"], [CONVERT, "inspect"], ["tools/evaluate.py"], ["tools/probe.py"],
    ["tools/prepare_data.py"], ["tools/report.py"], ["tools/one_click.py"],
    ["-m", "megatron_probsft.objectives"], ["examples/quickstart/run.py"], ["examples/continuum/run.py"],
]  # fmt: skip
MISTAKES = {
    "a flag's value: --lr -1": {"--lr": "-1"},
    "a flag's name": {"--learning-rate": "1"},
    "an objective's name": {"--objective": "GeneralFamly-8"},
    "a layout that does not divide": {"--pipeline-model-parallel-size": "3"},
    "no such data file": {"--data": "absent.jsonl"},
    "no such model folder": {"--hf-model": "./absent"},
    "--save exists": {"--save": "there"},
    "a row that is no JSON": {"--data": "cut.jsonl"},
    "a row with a number for text": {"--data": "number.jsonl"},
    "a row without the column": {"--data": "column.jsonl"},
}
UNDER_TORCHRUN = ("a flag's value: --lr -1", "no such data file", "a row that is no JSON")
BAD_ROWS = {
    "cut": '{"prompt": "a", "resp', "number": '{"prompt": "a", "response": 3}', "column": '{"prompt": "a"}',
}  # fmt: skip
COLUMNS = {
    "what": "{what}",
    "seconds": "{seconds:.2f}",
    "baseline": "{baseline:.2f}",
    "÷ baseline": "{ratio_to_baseline:.2f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--baseline", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="timed, after one to warm up")
    parser.add_argument("--json", help="write the records here")
    args = parser.parse_args()
    checkouts = {"seconds": ROOT} | ({"baseline": args.baseline.resolve()} if args.baseline else {})
    with tempfile.TemporaryDirectory() as folder:
        cases = _cases(Path(folder))
        runs = {what: _run(words, checkouts, Path(folder)) for what, words in cases.items()}
        medians = interleaved_medians(runs, args.rounds)
    records: list[dict[str, Any]] = [{"what": what, **median} for what, median in medians.items()]
    columns = COLUMNS if args.baseline else dict(list(COLUMNS.items())[:2])
    for record in records:
        if args.baseline:
            record["ratio_to_baseline"] = record["seconds"] / record["baseline"]
        record |= {"rounds": args.rounds, **hardware()}
    show(f"seconds of whole processes, {hardware()['hardware']}", columns, records)
    write_json(args.json, records)


def _cases(folder: Path) -> dict[str, list[str]]:
    """What is timed, as words after `python`; what the words name is written into the folder."""
    _write(folder)
    cases = {" ".join([*words, "--help"]): [*words, "--help"] for words in COMMANDS}
    given = {"--hf-model": "model", "--data": "good.jsonl", "--save": "new", "--train-iters": "1"}
    train = {
        what: ["-m", "megatron_probsft.train", *(word for pair in (given | wrong).items() for word in pair)]
        for what, wrong in MISTAKES.items()
    }
    cases |= {f"mistake: {what}": words for what, words in train.items()}
    for processes in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        cases[f"torchrun {processes}: fails at once"] = [*torchrun, str(folder / "fails.py")]
        cases |= {f"torchrun {processes}: {what}": [*torchrun, *train[what]] for what in UNDER_TORCHRUN}
    return cases


def _write(folder: Path) -> None:
    good = '{"prompt": "what is one and two?", "response": "three"}\n' * 1000
    (folder / "good.jsonl").write_text(good)
    for name, line in BAD_ROWS.items():
        (folder / f"{name}.jsonl").write_text(good + line + "\n")
    (folder / "there").mkdir()
    (folder / "fails.py").write_text("raise SystemExit(2)\n")
    (folder / "model").mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 96, "vocab_size": 331,
        "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6,
        "max_position_embeddings": 4096, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "model" / "config.json").write_text(json.dumps(config))


def _run(words: list[str], checkouts: Mapping[str, Path], folder: Path) -> Run:
    def run() -> dict[str, float]:
        return {name: _seconds(words, checkout, folder) for name, checkout in checkouts.items()}

    return run


def _seconds(words: list[str], checkout: Path, folder: Path) -> float:
    words = [str(checkout / word) if word.startswith(("tools/", "examples/")) else word for word in words]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    wanted = 0 if words[-1] == "--help" else (1, 2)["torch.distributed.run" not in words]
    if done.returncode != wanted:
        raise RuntimeError(f"{words} ended with {done.returncode}:\n{done.stderr}")
    return seconds


if __name__ == "__main__":
    main()
