"""`probsft report` for those who work in a checkout: see megatron_probsft/commands/report.py."""

from megatron_probsft.commands.report import main

if __name__ == "__main__":
    main()
