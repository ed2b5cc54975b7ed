"""Shared models: small random ones, and SmolLM2 with its real weights, made once per session.

The suite is a CPU's: it hides the GPUs of the machine, and `python -m benchmarks.gpu` is the suite for them.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

# Before torch looks, and for child processes: a rank per GPU and NCCL would be another suite.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for work leave their core to the other worker's tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

# Triton decides at import whether its kernels are interpreted; child processes decide anew.
os.environ["TRITON_INTERPRET"] = "1"
import triton.experimental.gluon  # noqa: F401  (which the interpreter imports late)

import megatron_probsft.vocab_parallel.triton_kernels  # noqa: F401

del os.environ["TRITON_INTERPRET"]

import pytest
import torch

from megatron_probsft.training.log import curves  # noqa: F401  (runs import it late: once here)
from tests.support import sizes
from tests.support.tiny_models import save_tiny_model

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--size", choices=sizes.SIZES,
        help="how much of the suite runs (default: test; all of what is named by file::test)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "size(name): the smallest --size that runs this test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = any("::" in argument for argument in config.args)
    sizes.keep(config.option.size or ("all" if named else "test"), config, items)


def pytest_sessionfinish() -> None:
    """A child that hangs would keep the interpreter from exiting."""
    for child in multiprocessing.active_children():
        child.kill()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 heads, 6 groups, 4 layers, tied: divides by TP 2 and 3 and PP 2 and 4."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 heads, 2 groups, 4 layers, untied, biases on q, k, v."""
    folder = tmp_path_factory.mktemp("tiny") / "qwen2"
    return save_tiny_model(folder, family="qwen2", tied=False, heads=8, groups=2, seed=1)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, built once from its package beside the quick start's runs."""
    from megatron_probsft.experiments.smollm2 import build_hf_folder

    return build_hf_folder(Path(__file__).parents[1] / "runs" / "models" / "SmolLM2-135M-Instruct")
