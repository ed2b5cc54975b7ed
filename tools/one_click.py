"""`probsft one-click` for those who work in a checkout: see megatron_probsft/commands/one_click.py."""

from megatron_probsft.commands.one_click import main

if __name__ == "__main__":
    main()
