"""Convert between Hugging Face folders and Megatron checkpoints, exactly, on a CPU, without torchrun.

python tools/convert_checkpoint.py hf-to-megatron --hf MODEL --megatron CHECKPOINTS
python tools/convert_checkpoint.py megatron-to-hf --megatron RUN --hf MODEL [--ckpt-step 100]

Weights keep their dtype unless --dtype says otherwise. Tensors stream: memory holds a few of them.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from megatron_probsft.checkpoint.convert import Conversion, hf_to_megatron, megatron_to_hf
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import one_line_errors

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    args = _parser().parse_args()
    with one_line_errors():
        distributed.initialize()
        started = time.perf_counter()
        done: Conversion = args.run(args)
        seconds = time.perf_counter() - started
        distributed.shutdown()
        for warning in done.warnings:
            print(f"warning: {warning}")
        gigabytes = done.nbytes / 1e9
        print(f"wrote {done.folder}: {gigabytes:.2f} GB in {seconds:.1f} s ({gigabytes / seconds:.2f} GB/s)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--hf", type=Path, required=True, help="Hugging Face folder")
    common.add_argument("--megatron", type=Path, required=True, help="folder of Megatron checkpoints")
    common.add_argument("--dtype", choices=_DTYPES, help="cast the weights (default: as they are)")
    common.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="threads (default: %(default)s)"
    )
    to_megatron = verbs.add_parser("hf-to-megatron", parents=[common], help="write CHECKPOINTS/iter_0000000")
    to_megatron.set_defaults(
        run=lambda args: hf_to_megatron(
            args.hf, args.megatron, dtype=_DTYPES.get(args.dtype), workers=args.workers
        )
    )
    to_hf = verbs.add_parser("megatron-to-hf", parents=[common], help="write a Hugging Face folder")
    to_hf.add_argument("--ckpt-step", type=int, help="which checkpoint (default: the newest)")
    to_hf.set_defaults(
        run=lambda args: megatron_to_hf(
            args.megatron, args.hf, step=args.ckpt_step, dtype=_DTYPES.get(args.dtype), workers=args.workers
        )
    )
    return parser


if __name__ == "__main__":
    main()
