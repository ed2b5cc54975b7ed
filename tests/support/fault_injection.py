"""Kill a real torchrun job again and again, resume it each time, and compare it with an uninterrupted one.

python -m tests.support.fault_injection --kills 20 --signal KILL --async-save
python -m tests.support.fault_injection --kills 20 --signal TERM
python -m tests.support.fault_injection --kills 6 --signal KILL --change-layout   # TP 2, then PP 2

The moments take turns: while it resumes, within a step, within the writing of a checkpoint. KILL goes to the
whole job (a machine is lost) or to one worker (out of memory); TERM and USR1 go to the workers, as schedulers
send them. The final weights must be the same bit for bit (1e-5 after a change of layout), and metrics.jsonl
must hold every step once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from tests.support.tiny_models import save_tiny_model
from tests.support.training_runs import records, write_pairs

TENSOR, PIPELINE = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
MOMENTS = ("in a step", "in a write", "in a later write", "while resuming")


@dataclass(frozen=True)
class Job:
    """A training job of two processes into one folder, startable again and again by one command line."""

    folder: Path
    model: Path
    data: Path
    steps: int
    async_save: bool
    more: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self, layout: str, restarts: int = 0) -> subprocess.Popen:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--max-restarts", restarts, "-m", "megatron_probsft.train", layout, "2",
            "--hf-model", self.model, "--data", self.data,
            "--data-cache-path", self.data.with_suffix(".cache"), "--load", self.run, "--save", self.run,
            "--save-hf", self.folder / "hf", "--train-iters", self.steps, "--global-batch-size", "8",
            "--seq-length", "128", "--lr", "1e-3", "--save-interval", "1", "--most-recent-k", "2",
            *(["--async-save"] if self.async_save else []), *self.more,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=log, env=environment,
                cwd=Path(__file__).parents[2],
            )  # fmt: skip

    def steps_recorded(self) -> int:
        file = self.run / "metrics.jsonl"
        return file.read_text().count('"kind": "train"') if file.is_file() else 0

    def last_lines(self) -> str:
        return "\n".join((self.folder / "log").read_text().splitlines()[-60:])


def wait_for(moment: str, job: Job, process: subprocess.Popen, generator: random.Random) -> None:
    """Return within the moment, at a random point of it."""
    before, said = job.steps_recorded(), (job.folder / "log").stat().st_size
    wanted = 2 if moment == "in a later write" else 1
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 300:
        if moment == "while resuming":
            if (job.folder / "log").stat().st_size > said:  # its first line: processes are starting
                time.sleep(generator.uniform(0, 3))
                return
        # A resume forgets the steps after its checkpoint.
        elif (done := job.steps_recorded() - before) < 0:
            before += done
        elif done >= wanted and moment == "in a step":
            time.sleep(generator.uniform(0, 0.3))
            return
        elif done >= wanted and list(job.run.glob("iter_*.part")):
            time.sleep(generator.uniform(0, 0.1))
            return
        time.sleep(0.002)
    raise AssertionError(f"the job ended with {process.poll()} by itself:\n{job.last_lines()}")


def strike(process: subprocess.Popen, number: signal.Signals, *, one_worker: bool) -> int:
    """Send the signal and wait until nothing of the job is left; torchrun's exit status."""
    torchrun = psutil.Process(process.pid)
    below, workers = torchrun.children(recursive=True), workers_of(process)
    targets = workers[-1:] if one_worker else workers
    if number == signal.SIGKILL and not one_worker:
        targets = [torchrun, *below]
    for target in targets:
        target.send_signal(number)
    status = process.wait(120)
    psutil.wait_procs(below, 120)
    return status


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes of this start, in the order of their ranks."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "megatron_probsft.train" in " ".join(child.cmdline()):
                found.append(child)
    return sorted(found, key=lambda child: child.pid)


def strike_under_restarts(job: Job, numbers: Sequence[signal.Signals], seed: int = 0) -> None:
    """Start the job once, and send each signal to one worker of torchrun's next start; it must end well.

    A worker that SIGSTOP has stopped is killed once the run has named it, as torchrun does 30 s later.
    """
    generator = random.Random(seed)
    process = job.start(TENSOR, restarts=len(numbers))
    for moment, number in zip(("in a later write", "in a step"), numbers, strict=False):
        wait_for(moment, job, process, generator)
        rank = generator.randrange(2)
        worker = workers_of(process)[rank]
        print(f"{number.name} to rank {rank} after {job.steps_recorded()} steps", flush=True)
        worker.send_signal(number)
        if number == signal.SIGSTOP:
            name = f"error: rank {rank} on {socket.gethostname()} (last in step "
            began = time.monotonic()
            while name not in job.last_lines():
                assert time.monotonic() - began < 60, job.last_lines()
                time.sleep(0.05)
            worker.kill()
        psutil.wait_procs([worker], 60)
    assert process.wait(300) == 0, job.last_lines()


def inject(job: Job, kills: int, number: signal.Signals, *, change_layout: bool, seed: int = 0) -> Counter:
    """Kill the job `kills` times, then let it end; how often half a checkpoint was left."""
    generator = random.Random(seed)
    found: Counter = Counter()
    for kill in range(kills):
        layout = PIPELINE if change_layout and kill >= kills // 2 else TENSOR
        process = job.start(layout)
        moment = MOMENTS[kill % len(MOMENTS)]
        if number != signal.SIGKILL and moment == "while resuming":
            moment = "in a step"  # before it trains, a signal ends it at once: nothing to keep
        wait_for(moment, job, process, generator)
        one_worker = number == signal.SIGKILL and kill % 2 == 1
        status = strike(process, number, one_worker=one_worker)
        halves = len(list(job.run.glob("iter_*.part")))
        found["half-written checkpoint left" if halves else "no half-written checkpoint"] += 1
        print(
            f"{kill + 1:>3}/{kills} {number.name} {moment}{', one worker' if one_worker else ''}: "
            f"exit status {status}, {job.steps_recorded()} steps recorded, half-written: {halves}",
            flush=True,
        )
        if number != signal.SIGKILL:
            assert status == 0, f"{number.name} should end the job well:\n{job.last_lines()}"
            assert "stopped at step" in job.last_lines(), job.last_lines()
            assert not halves
    process = job.start(PIPELINE if change_layout else TENSOR)
    assert process.wait(600) == 0, job.last_lines()
    return found


def compare(job: Job, whole: Job) -> float:
    """The largest relative difference of a weight; 0.0: the same bits. Each step must be there once."""
    seen = [record["iteration"] for record in records(job.run, "train")]
    assert seen == list(range(1, job.steps + 1)), seen
    ours, theirs = ({} for _ in range(2))
    for weights, folder in ((ours, job.folder), (theirs, whole.folder)):
        for file in (folder / "hf").glob("*.safetensors"):
            weights.update(load_file(file))
    assert ours.keys() == theirs.keys()
    if all(torch.equal(ours[name], theirs[name]) for name in ours):
        return 0.0
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=["KILL", "TERM", "USR1"], default="KILL")
    parser.add_argument("--async-save", action="store_true")
    parser.add_argument("--change-layout", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = uninterrupted(folder, options.kills, async_save=options.async_save)
        outcome = run_all(whole, folder, options.kills, options.signal, change_layout=options.change_layout)
    print(json.dumps(outcome, indent=1))
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    if outcome["difference"] > (1e-5 if options.change_layout else 0.0):
        sys.exit("the weights differ from those of an uninterrupted run")


def uninterrupted(folder: Path, kills: int, *, async_save: bool) -> Job:
    """A job that has ended, with steps for so many kills of another."""
    # Wide enough that a checkpoint takes a while to write; weights of a size at which rounding does not grow.
    model = save_tiny_model(folder / "model", head_dim=64, initializer_range=0.04)
    data = write_pairs(folder / "train.jsonl", 40)
    # A signal is answered after the step: more than one may go by.
    whole = another(Job(folder, model, data, 3 * kills + 3, async_save), folder / "whole")
    assert whole.start(TENSOR).wait(600) == 0, whole.last_lines()
    return whole


def another(job: Job, folder: Path, *more: str) -> Job:
    """The same job in another folder, not yet started, with more flags."""
    folder.mkdir()
    (folder / "log").touch()
    return dataclasses.replace(job, folder=folder, more=more)


def run_all(whole: Job, folder: Path, kills: int, name: str, *, change_layout: bool) -> dict:
    """The job that is killed, beside the one that was not, and what came of them."""
    killed = another(whole, folder / "killed")
    began = time.monotonic()
    found = inject(killed, kills, signal.Signals[f"SIG{name}"], change_layout=change_layout)
    return {
        "signal": name, "kills": kills, "async_save": whole.async_save, "change_layout": change_layout,
        "steps": whole.steps, **found, "minutes": round((time.monotonic() - began) / 60, 1),
        "difference": compare(killed, whole),
    }  # fmt: skip


if __name__ == "__main__":
    main()
