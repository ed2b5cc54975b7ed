"""Convert between Hugging Face folders and Megatron checkpoints, exactly; compare them; say what they are.

probsft convert hf-to-megatron --hf MODEL --megatron CHECKPOINTS
probsft convert megatron-to-hf --megatron RUN --hf MODEL [--ckpt-step 100]
probsft convert verify --hf MODEL [--megatron CHECKPOINTS] [--hidden-states]
probsft convert inspect --hf MODEL | --megatron RUN

On a CPU, without torchrun. Weights keep their dtype unless --dtype says otherwise. Tensors stream: memory
holds a few of them. verify ends with 1 where the models differ by more than rounding.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from megatron_probsft.checkpoint.megatron.run_folder import check_unused, find_checkpoint, hf_folder_of
from megatron_probsft.checkpoint.sample_text import SAMPLE_TEXT
from megatron_probsft.models.hf_model import read_hf_model, read_raw_config
from megatron_probsft.runtime.consoles import console
from megatron_probsft.runtime.errors import UserError, one_line_errors
from megatron_probsft.runtime.folders import check_is_new, check_writable
from megatron_probsft.runtime.processes.launch import launched_world_size
from megatron_probsft.runtime.read_files import read_text

if TYPE_CHECKING:
    from megatron_probsft.checkpoint.convert import Conversion
    from megatron_probsft.checkpoint.verdict import Verdict

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> None:
    args = _parser().parse_args()
    with one_line_errors():
        _check(args)
        # Here and in what runs then: torch and Megatron-Core take many seconds to import.
        from megatron_probsft.runtime.imports import fast_imports  # noqa: F401  # isort: skip

        from megatron_probsft.runtime import distributed

        distributed.initialize()
        status = args.run(args)
        distributed.shutdown()
    sys.exit(status)


def _check(args: argparse.Namespace) -> None:
    """Tell the mistakes that flags and small files show, before the seconds that torch takes to import."""
    if launched_world_size() > 1:
        raise UserError(f"this is the work of one process, not of {launched_world_size()}: without torchrun")
    if json_file := getattr(args, "json", None):
        if json_file.is_dir():
            raise UserError(f"--json {json_file} is a folder: name a file")
        check_writable(json_file.parent, "--json")
    if args.run in (_to_megatron, _to_hf) and args.workers < 1:
        raise UserError(f"--workers must be more than 0, got {args.workers}")
    if args.run is _to_megatron:
        check_unused(args.megatron)
    if args.run is _to_hf:
        check_is_new(args.hf)
    elif args.hf:
        read_raw_config(args.hf)
    if args.megatron and args.run is not _to_megatron:
        checkpoint, _ = find_checkpoint(args.megatron, args.ckpt_step)
        if args.run is _to_hf:
            read_raw_config(hf_folder_of(checkpoint))


def _to_megatron(args: argparse.Namespace) -> int:
    from megatron_probsft.checkpoint.convert import hf_to_megatron

    return _convert(hf_to_megatron, args.hf, args.megatron, args)


def _to_hf(args: argparse.Namespace) -> int:
    from megatron_probsft.checkpoint.convert import megatron_to_hf
    from megatron_probsft.data.tokenizers.load import load_tokenizer
    from megatron_probsft.data.tokenizers.notes import tokenizer_notes

    status = _convert(megatron_to_hf, args.megatron, args.hf, args, step=args.ckpt_step)
    if (args.hf / "tokenizer_config.json").exists():
        try:
            notes = tokenizer_notes(args.hf, load_tokenizer(args.hf))
        except UserError as error:  # the weights are right all the same
            notes = [str(error)]
        for note in notes:
            print(f"warning: {note}")
    return status


def _convert(convert: Any, source: Path, target: Path, args: argparse.Namespace, **more: Any) -> int:
    import torch

    dtype = getattr(torch, _DTYPES[args.dtype]) if args.dtype else None
    started = time.perf_counter()
    done: Conversion = convert(source, target, dtype=dtype, workers=args.workers, **more)
    seconds, gigabytes = time.perf_counter() - started, done.nbytes / 1e9
    for warning in done.warnings:
        print(f"warning: {warning}")
    print(f"wrote {done.folder}: {gigabytes:.2f} GB in {seconds:.1f} s ({gigabytes / seconds:.2f} GB/s)")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from megatron_probsft.checkpoint.verdict import sentence
    from megatron_probsft.checkpoint.verify import verify
    from megatron_probsft.data.tokenizers.load import load_tokenizer

    hf = read_hf_model(args.hf)
    checkpoint = find_checkpoint(args.megatron, args.ckpt_step)[0] if args.megatron else None
    text = read_text(args.text, "--text") if args.text else SAMPLE_TEXT
    token_ids = load_tokenizer(hf.folder).encode(text)[: hf.shape.max_position_embeddings]
    dtypes = [args.dtype] if args.dtype else ["fp32", "bf16"]
    verdicts = verify(hf, checkpoint, token_ids, dtypes, lambda text: print(f"running {text}", flush=True))
    screen = console(120)
    screen.print(_verdict_table(verdicts))
    if args.hidden_states:
        screen.print(_layer_table(verdicts))
    for verdict in verdicts:
        print(sentence(verdict))
    _write_json(
        args.json,
        {
            "max_abs_logprob_diff": verdicts[0].max_abs_logprob_diff,  # in bf16 rounding decides
            "equal": all(verdict.first_departure is None for verdict in verdicts),
            "by_dtype": {verdict.dtype: dataclasses.asdict(verdict) for verdict in verdicts},
        },
    )
    return int(any(verdict.first_departure for verdict in verdicts))


def _inspect(args: argparse.Namespace) -> int:
    from megatron_probsft.checkpoint import inspection

    found = (
        inspection.inspect_hf(args.hf)
        if args.hf
        else inspection.inspect_megatron(args.megatron, args.ckpt_step)
    )
    table = Table(show_header=False, title=str(args.hf or args.megatron), title_justify="left")
    for name, value in found.items():
        shown = ", ".join(f"{key}: {one}" for key, one in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), f"{shown:,}" if type(shown) is int else str(shown))
    console(120).print(table)
    _write_json(args.json, found)
    return 0


def _verdict_table(verdicts: list[Verdict]) -> Table:
    title = "log-probabilities of the text's tokens: ours − transformers', both in this dtype"
    table = Table(title=title, title_justify="left")
    for heading in ("dtype", "tokens", "max |Δ|", "mean |Δ|", "worst at", "same top-1"):
        table.add_column(heading, justify="right")
    for v in verdicts:
        table.add_row(
            v.dtype, f"{v.positions}", f"{v.max_abs_logprob_diff:.2e}", f"{v.mean_abs_logprob_diff:.2e}",
            f"{v.worst_position}", f"{v.top1_agreement:.1%}",
        )  # fmt: skip
    return table


def _layer_table(verdicts: list[Verdict]) -> Table:
    table = Table(title="hidden states: relative distance from transformers in fp32", title_justify="left")
    table.add_column("after")
    for verdict in verdicts:
        table.add_column(verdict.dtype, justify="right")
        table.add_column("limit", justify="right")
    for checks in zip(*(verdict.checks[:-1] for verdict in verdicts), strict=True):
        cells = (cell for check in checks for cell in (f"{check.departure:.2e}", f"{check.limit:.2e}"))
        table.add_row(checks[0].place, *cells)
    return table


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    def folders(to: Any, *, hf: bool, megatron: bool) -> None:
        to.add_argument("--hf", type=Path, required=hf, help="Hugging Face folder")
        to.add_argument("--megatron", type=Path, required=megatron, help="folder of Megatron checkpoints")

    step = {"type": int, "help": "step of the checkpoint (default: the newest)"}
    to_megatron = verb("hf-to-megatron", _to_megatron, "write CHECKPOINTS/iter_0000000")
    to_hf = verb("megatron-to-hf", _to_hf, "write a Hugging Face folder")
    to_hf.add_argument("--ckpt-step", **step)
    for parser_of_verb in (to_megatron, to_hf):
        folders(parser_of_verb, hf=True, megatron=True)
        parser_of_verb.add_argument(
            "--dtype", choices=_DTYPES, help="type that the weights are cast to (default: each keeps its own)"
        )
        parser_of_verb.add_argument(
            "--workers", type=int, default=4, help="threads; they often wait for the disk (default: 4)"
        )
    check = verb("verify", _verify, "compare our Megatron model with transformers on a text")
    folders(check, hf=True, megatron=False)
    check.add_argument("--ckpt-step", **step)
    check.add_argument(
        "--dtype", choices=("fp32", "bf16"), help="compare in this type only (default: in both)"
    )
    check.add_argument(
        "--text",
        type=Path,
        help="file with the text to compare on (default: a few hundred tokens of several kinds)",
    )
    check.add_argument(
        "--hidden-states", action="store_true", help="also show the difference after each layer"
    )
    look = verb("inspect", _inspect, "describe a folder")
    folders(look.add_mutually_exclusive_group(required=True), hf=False, megatron=False)
    look.add_argument("--ckpt-step", **step)
    for parser_of_verb in (check, look):
        parser_of_verb.add_argument("--json", type=Path, help="file that the result is also written to")
    check.epilog = "In the JSON, max_abs_logprob_diff is fp32's, or of the one --dtype; by_dtype has each."
    return parser


if __name__ == "__main__":
    main()
