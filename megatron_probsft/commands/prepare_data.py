"""Prepare a domain's data: train, validation and test files with the paper's columns, and a card.

probsft prepare-data figfont --generate --output runs/data/figfont
probsft prepare-data math --output runs/data/math                          # the paper's, of the hub
probsft prepare-data medical --data m23k.jsonl --test-data eval.parquet --output runs/data/medical

Train with --data OUTPUT/train.parquet --valid-data OUTPUT/validation.parquet --prompt-key extra_info.question
--response-key extra_info.answer.
"""

import argparse
from pathlib import Path

from megatron_probsft.domains.registry import domains
from megatron_probsft.runtime.consoles import console
from megatron_probsft.runtime.errors import one_line_errors


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; without `arguments` that of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    known = domains()
    generators = [f"{name}: {one.generator.what}" for name, one in known.items() if one.generator]
    add("domain", choices=list(known))
    add("--output", type=Path, required=True, help="new folder")
    add(
        "--data", nargs="+", metavar="ITEM", help=".jsonl, .parquet, a folder of `datasets`, owner/name:split"
    )
    add("--test-data", nargs="+", default=[], metavar="ITEM", help="likewise, to test on; goes with --data")
    add("--generate", action="store_true", help=f"make the data, without the hub; {'; '.join(generators)}")
    add("--train", type=int, help="first N rows only, the validation rows among them")
    add("--test", type=int, help="first N test rows only")
    add("--validation", type=int, default=128, help="training rows to hold out (default: 128)")
    add("--seed", type=int, default=42, help="seed of the generator (default: 42, the paper's)")
    add("--tokenizer", metavar="MODEL", help="model folder; its token counts go into the card")
    args = parser.parse_args(arguments)
    if args.generate and args.data:
        parser.error("--generate and --data: give one of them")
    return args


def main() -> None:
    args = parse_arguments()
    with one_line_errors():
        # Here: --help does without numpy, pyarrow and all.
        from megatron_probsft.domains.preparing import card as cards
        from megatron_probsft.domains.preparing.preparation import Preparation, prepare

        source = "generated" if args.generate else args.data or "hub"
        card = prepare(
            Preparation(
                args.domain, source, args.output, args.test_data, args.train, args.test, args.validation,
                args.seed, args.tokenizer,
            )
        )  # fmt: skip
    console(110).print(cards.table(card))
    for note in card["notes"]:
        print(note)
    print(
        f"left out: {cards.dropped(card)}; test questions in training: {card['test_questions_in_training']}"
    )
    print(f"{'already there:' if 'already_there' in card else 'wrote'} {args.output}")


if __name__ == "__main__":
    main()
