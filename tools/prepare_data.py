"""`probsft prepare-data` for those who work in a checkout: see megatron_probsft/commands/prepare_data.py."""

from megatron_probsft.commands.prepare_data import main

if __name__ == "__main__":
    main()
