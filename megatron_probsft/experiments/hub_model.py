"""Fetches a model of the hub and gives it a name of its own, a link into transformers' cache.

python -m megatron_probsft.experiments.hub_model Qwen/Qwen2.5-Math-1.5B --output runs/models/Qwen2.5-Math-1.5B
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.runtime.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="hub id, owner/name")
    parser.add_argument("--output", type=Path, required=True, help="the link to make")
    args = parser.parse_args()
    with one_line_errors():
        folder = read_hf_model(args.model).folder.resolve()
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.symlink_to(folder)
        print(f"{args.output} is {folder}")


if __name__ == "__main__":
    main()
