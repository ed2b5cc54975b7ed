"""`probsft probe` for those who work in a checkout: see megatron_probsft/commands/probe.py."""

from megatron_probsft.commands.probe import main

if __name__ == "__main__":
    main()
