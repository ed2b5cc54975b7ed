"""Every mistake a user can make ends in one clear line and exit status 2, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_probsft import train
from tests.support.tiny_models import save_tiny_model
from tests.support.training_runs import write_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


def _main(argv: list[str], world_size: int, stderr: Path) -> int:
    """Run the trainer's main in a forked process; its exit status. (A second import costs 10 s.)"""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # the parent's thread pool does not live on in a fork
        sys.stderr = stderr.open("w")
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}  # nobody is met there
        sys.argv = ["train", *argv]
        status = 70
        try:
            train.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _refused(folder: Path, message: str, argv: list[str], world_size: int = 1) -> None:
    status = _main(argv, world_size, folder / "stderr")
    lines = [line for line in (folder / "stderr").read_text().splitlines() if line.startswith("error: ")]
    assert status == 2, (folder / "stderr").read_text()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder / "run").exists()


def _flags(folder: Path, model: Path, data: Path, *more: str) -> list[str]:
    return [
        "--hf-model", str(model), "--data", str(data), "--save", str(folder / "run"), "--train-iters", "1",
        "--global-batch-size", "4", "--data-cache-path", str(folder / "cache"), "--seq-length", "128", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "world_size", "message"),
    [
        (["--objective", "GeneralFamly-8"], 1, "did you mean GeneralFamily-α"),
        (["--objective", "OnlyTopP-1.5"], 1, "out of range (0 ≤ q < 1)"),
        (["--objective", "PLogP"], 1, "which is the objective DFT"),
        (["--objective", "json:nothing"], 1, "has no function 'nothing'"),
        (["--loss-chunk-tokens", "0"], 1, "--loss-chunk-tokens must be more than 0"),
        (["--loss-kernels", "triton"], 1, "needs a CUDA device"),
        (["--prompt-key", "extra_info.question"], 1, "extra_info.question"),
        (["--response-key", "answer"], 1, "answer"),
        (["--seq-length", "8"], 1, "--truncation"),
        (["--tensor-model-parallel-size", "4"], 4, "possible: 1, 2, 3, 6"),
        (["--pipeline-model-parallel-size", "3"], 3, "4 layers do not divide"),
        (
            ["--pipeline-model-parallel-size", "2", "--decoder-first-pipeline-num-layers", "4"],
            2,
            "leave 0 for the other 1",
        ),
        (["--num-virtual-stages-per-pipeline-rank", "2"], 1, "needs --pipeline-model-parallel-size"),
        (
            ["--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "3"],
            2,
            "does not divide the 2 layers of a pipeline stage",
        ),
        (["--context-parallel-size", "2", "--seq-length", "126"], 2, "must be a multiple of 2 ×"),
        (["--context-parallel-size", "2"], 3, "3 processes do not divide"),
        (["--overlap-param-gather"], 1, "needs --use-distributed-optimizer"),
        (["--recompute-granularity", "full"], 1, "needs --recompute-method"),
        (["--no-packing", "--fixed-pack-length"], 1, "is a way of packing"),
        (["--tensor-model-parallel-size", "2"], 3, "3 processes do not divide"),
        (["--seq-length", "2048"], 1, "more than the model's 1024 positions"),
        (["--load", "somewhere"], 1, "--load to be the same as --save"),
        (["--learning-rate", "1"], 1, "unknown flag --learning-rate"),
        (["--lr", "-1"], 1, "--lr must be more than 0"),
        (["--data", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["--valid-data", "a.jsonl", "a.jsonl"], 1, "names a.jsonl more than once"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_flags(
    more: list[str], world_size: int, message: str, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    _refused(tmp_path, message, _flags(tmp_path, tiny_llama, data, *more), world_size)


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "a", "response": ', '["a", "b"]', '{"prompt": "a", "response": 3}', '{"prompt": "a"}'],
)
def test_malformed_row_names_file_and_line(line: str, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    good = data.read_text().splitlines()
    bad.write_text("\n".join([*good[:6], line, *good[6:]]) + "\n")
    _refused(tmp_path, "bad.jsonl", _flags(tmp_path, tiny_llama, bad))
    assert "7" in (tmp_path / "stderr").read_text()


def test_label_out_of_the_models_vocabulary(data: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", vocab_size=100)
    _refused(tmp_path, "vocabulary", _flags(tmp_path, model, data))


def test_unsupported_architecture(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((tiny_llama / "config.json").read_text())
    config.update(architectures=["FalconForCausalLM"], model_type="falcon")
    (model / "config.json").write_text(json.dumps(config))
    _refused(
        tmp_path, "'FalconForCausalLM' is not supported; supported: Llama", _flags(tmp_path, model, data)
    )
    config.update(architectures=["LlamaForCausalLM"], model_type="llama")
    config["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    (model / "config.json").write_text(json.dumps(config))
    _refused(tmp_path, "rope scaling", _flags(tmp_path, model, data))


def test_missing_and_truncated_models_and_checkpoints(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    _refused(tmp_path, "no config.json", _flags(tmp_path, tmp_path / "nothing", data))
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_llama.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    _refused(tmp_path, "truncated or damaged", _flags(tmp_path, model, data))
    flags = _flags(tmp_path, model, data)[2:]
    _refused(tmp_path, "does not exist", ["--load", str(tmp_path / "nowhere"), *flags])


def test_a_run_folder_that_exists(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    flags = _flags(tmp_path, tiny_llama, data)
    flags[flags.index(str(tmp_path / "run"))] = str(tmp_path / "other")
    _refused(tmp_path, "other exists", flags)


def test_unknown_yaml_keys_and_wrong_types(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for text, message in (
        ("learning_rate: 1", "unknown key 'learning_rate'"),
        ("lr: fast", "lr should be float, got 'fast'"),
        ("bf16: 1", "bf16 should be bool"),
        ("template: alpaca", "--template alpaca is unknown: use one of chat, plain, qwen-boxed"),
        ("- lr", "must hold keys and values"),
    ):
        recipe.write_text(text)
        _refused(tmp_path, message, _flags(tmp_path, tiny_llama, data, "--config", str(recipe)))


def _torchrun(processes: int, *words: str) -> str:
    """What real torchrun leaves on the screen, its own report on the failure included."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--nnodes", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *words,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode != 0
    return done.stdout


def _last_words(screen: str) -> str:
    """The last line, but for the frame around torchrun's report."""
    return [line.strip() for line in screen.splitlines() if line.strip(" =")][-1]


@pytest.mark.parametrize("processes", [1, 2])
def test_under_torchrun_a_mistake_is_the_last_that_is_said(
    processes: int, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    """Every rank meets it; one tells it."""
    flags = _flags(tmp_path, tiny_llama, data, "--tensor-model-parallel-size", str(processes), "--lr", "-1")
    screen = _torchrun(processes, "-m", "megatron_probsft.train", *flags)
    assert _last_words(screen) == "error: --lr must be more than 0, got -1.0"
    assert screen.count("--lr must be") == 1


def test_under_torchrun_one_rank_speaks(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """An error found by rank 0 while the others wait for the data: the sample is too long."""
    flags = _flags(tmp_path, tiny_llama, data, "--tensor-model-parallel-size", "2", "--seq-length", "8")
    screen = _torchrun(2, "-m", "megatron_probsft.train", *flags)
    assert _last_words(screen).startswith(f"error: {data}:")
    assert "--truncation" in _last_words(screen)
    assert screen.count("error: ") == 1


def test_under_torchrun_a_mistake_of_one_rank_alone_is_told_with_its_number(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\n"
        "from megatron_probsft.runtime.errors import UserError, one_line_errors\n"
        "with one_line_errors():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise UserError('the disk is full')\n"
        "    time.sleep(60)\n"
    )
    screen = _torchrun(2, str(program))
    assert _last_words(screen) == "error: rank 1: the disk is full"
    assert screen.count("the disk is full") == 1
