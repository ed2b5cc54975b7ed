"""Convert between Hugging Face folders and Megatron checkpoints, exactly, on a CPU, without torchrun.

python tools/convert_checkpoint.py hf-to-megatron --hf MODEL --megatron CHECKPOINTS
python tools/convert_checkpoint.py megatron-to-hf --megatron RUN --hf MODEL
"""

import argparse
import time
from pathlib import Path

from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("direction", choices=["hf-to-megatron", "megatron-to-hf"])
    parser.add_argument("--hf", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--megatron", type=Path, required=True, help="folder of Megatron checkpoints")
    args = parser.parse_args()
    started = time.perf_counter()
    with one_line_errors():
        distributed.initialize()
        if args.direction == "hf-to-megatron":
            target = hf_to_megatron(args.hf, args.megatron)
        else:
            target = args.hf
            for warning in megatron_to_hf(args.megatron, args.hf):
                print(f"warning: {warning}")
        distributed.shutdown()
        print(f"wrote {target} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
