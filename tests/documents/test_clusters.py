"""Batch scripts and Kubernetes files, without a cluster: options by their grammar, files by their schema.

The batch scripts also run, with stand-ins for Slurm's programs: a run that is out of time is requeued.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.documents.test_commands import help_words
from tests.support.documents import ROOT

SCRIPTS = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))
_NUMBER = r"[1-9]\d*"
# The options of sbatch's manual page that are used here, and their values' form; None takes no value.
SBATCH: dict[str, str | None] = {
    "job-name": r"[\w-]+", "nodes": rf"{_NUMBER}(-{_NUMBER})?", "ntasks-per-node": _NUMBER,
    "gpus-per-node": rf"([\w-]+:)?{_NUMBER}", "cpus-per-task": _NUMBER, "output": r"\S+",
    "time": r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d(:\d\d)?)?", "open-mode": "append|truncate",
    "requeue": None, "signal": r"([RB]+:)?(SIG)?[A-Z]+\d?(@\d{1,5})?",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_options_are_sbatchs(script: Path) -> None:
    lines = script.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    # sbatch reads no options after the first command.
    first_command = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(line in lines[:first_command] for line in options)
    assert len(options) >= 8
    for line in options:
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert match is not None, line
        pattern = SBATCH[match[1]]
        assert match[2] is None if pattern is None else re.fullmatch(pattern, match[2]), line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("end", "requeued", "status"), [("signal", True, 0), ("error", False, 2), ("finished", False, 0)]
)
def test_out_of_time_is_requeued_and_nothing_else_is(
    script: Path, end: str, requeued: bool, status: int, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    # As torchrun: a signal that is passed on is followed by the save, and the exit status is 1.
    training = {
        "signal": 'trap "echo saved >> said; exit 1" USR1; echo $$ > pid.part; mv pid.part pid\n'
        "for i in $(seq 200); do sleep 0.05; done",
        "error": "exit 2",
        "finished": "exit 0",
    }
    programs = {
        "srun": f'echo "$@" > words\n{training[end]}',
        "scancel": "kill -USR1 $(cat pid)",
        "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> said; fi',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CONFIG": "job.yaml", "SLURM_JOB_ID": "17",
        "SLURM_GPUS_ON_NODE": "8", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "64",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    process = subprocess.Popen(["bash", str(script)], cwd=tmp_path, env=environment)
    if end == "signal":
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == status
    assert (said.read_text().split("\n") if said.exists() else [""]) == (
        ["saved", "requeue 17", ""] if requeued else [""]
    )
    assert "--config job.yaml" in (tmp_path / "words").read_text()


def test_a_script_without_a_config_says_so(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CONFIG"}
    done = subprocess.run(
        [shutil.which("bash") or "bash", str(SCRIPTS[0])], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "name the YAML file" in done.stderr


# The part of the API trainer.kubeflow.org/v1alpha1 that the files use, written from kubeflow/trainer's
# pkg/apis/trainer/v1alpha1/trainjob_types.go and trainingruntime_types.go, JobSet's v1alpha2 and core/v1.
_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_TEXTS = {"type": "array", "items": {"type": "string"}, "maxItems": 128}
_COUNT = {"type": "integer", "minimum": 1}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object with these keys and no others."""
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_ENV = {"type": "array", "items": _object(["name"], name={"type": "string"}, value={"type": "string"})}
_RESOURCES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_MOUNT = _object(["name", "mountPath"], name=_NAME, mountPath={"type": "string", "pattern": "^/"})
_VOLUME = _object(
    ["name"],
    name=_NAME,
    persistentVolumeClaim=_object(["claimName"], claimName=_NAME),
    emptyDir=_object([], medium={"enum": ["", "Memory"]}, sizeLimit={"type": "string"}),
)
_POD = _object(
    ["containers"],
    restartPolicy={"enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds={"type": "integer", "minimum": 0},
    containers={
        "type": "array",
        "items": _object(
            ["name", "image"], name={"const": "node"}, image={"type": "string", "maxLength": 500},
            volumeMounts={"type": "array", "items": _MOUNT},
        ),
    },
    volumes={"type": "array", "items": _VOLUME},
)  # fmt: skip
_JOB = _object(
    ["metadata", "spec"],
    metadata=_object(
        ["labels"], labels={"const": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    ),
    spec=_object(["template"], backoffLimit={"type": "integer"}, template=_object(["spec"], spec=_POD)),
)
_API = {"const": "trainer.kubeflow.org/v1alpha1"}
SCHEMAS = {
    "trainjob.yaml": _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion=_API,
        kind={"const": "TrainJob"},
        metadata=_object(["name"], name=_NAME),
        spec=_object(
            ["runtimeRef"],
            runtimeRef=_object(
                ["name"], name=_NAME, apiGroup={"const": "trainer.kubeflow.org"},
                kind={"enum": ["TrainingRuntime", "ClusterTrainingRuntime"]},
            ),
            trainer=_object(
                [], image={"type": "string", "maxLength": 500}, command=_TEXTS, args=_TEXTS, env=_ENV,
                numNodes=_COUNT, numProcPerNode=_COUNT,
                resourcesPerNode=_object([], limits=_RESOURCES, requests=_RESOURCES),
            ),
        ),
    ),
    "runtime.yaml": _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion=_API,
        kind={"const": "TrainingRuntime"},
        metadata=_object(["name"], name=_NAME),
        spec=_object(
            ["mlPolicy", "template"],
            mlPolicy=_object(
                [], numNodes=_COUNT,
                torch=_object([], numProcPerNode={"anyOf": [{"enum": ["auto", "cpu", "gpu"]}, _COUNT]}),
            ),
            template=_object(
                ["spec"],
                spec=_object(
                    ["replicatedJobs"],
                    failurePolicy=_object([], maxRestarts={"type": "integer", "minimum": 0}),
                    replicatedJobs={
                        "type": "array",
                        "items": _object(["name", "template"], name={"const": "node"}, template=_JOB),
                    },
                ),
            ),
        ),
    ),
}  # fmt: skip


def _kubernetes(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "examples" / "kubernetes" / name).read_text())


@pytest.mark.parametrize("name", SCHEMAS)
def test_kubernetes_files_fit_the_api(name: str) -> None:
    jsonschema.validate(_kubernetes(name), SCHEMAS[name])


def test_the_job_belongs_to_the_runtime() -> None:
    job, runtime = _kubernetes("trainjob.yaml"), _kubernetes("runtime.yaml")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    [timeout] = [word for word in job["spec"]["trainer"]["command"] if "shutdown-timeout" in word]
    assert int(timeout.partition("=")[2]) < pod["terminationGracePeriodSeconds"]
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_jobs_flags_exist() -> None:
    known = help_words(("probsft", "train"))
    for word in _kubernetes("trainjob.yaml")["spec"]["trainer"]["args"]:
        assert word.partition("=")[0] in known
