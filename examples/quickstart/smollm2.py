"""`python -m megatron_probsft.experiments.smollm2`, under the name that scripts written by one_click call."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_probsft.experiments.smollm2 import main

if __name__ == "__main__":
    main()
