"""`probsft evaluate` for those who work in a checkout: see megatron_probsft/commands/evaluate.py."""

from megatron_probsft.commands.evaluate import main

if __name__ == "__main__":
    main()
