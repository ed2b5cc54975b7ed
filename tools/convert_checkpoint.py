"""`probsft convert` for those who work in a checkout: see megatron_probsft/commands/convert.py."""

from megatron_probsft.commands.convert import main

if __name__ == "__main__":
    main()
