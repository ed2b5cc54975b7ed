# megatron_probsft on NVIDIA's PyTorch container (25.06 or newer).
#   docker build -t megatron_probsft --build-arg NGC_PYTORCH=IMAGE .   # IMAGE: nvidia/pytorch of NGC
# How to start it on one node and on many: docs/parallel.md.
#
# The container's own torch, Transformer Engine, Apex and flash-attn are built for its driver and CUDA: they
# are kept. vLLM pins another torch, so it lives in an environment of its own.
ARG NGC_PYTORCH=nvidia/pytorch
# The tag is the user's: what is newest fits the newest drivers only.
# hadolint ignore=DL3006
FROM ${NGC_PYTORCH}

WORKDIR /workspace/megatron_probsft
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN pip install --no-cache-dir uv==0.13.9

# vLLM first: its layer changes least. VLLM is what uv installs, the version that we test unless it is given:
# PyPI's vLLM is built for CUDA 13, which takes a driver of 580 or newer on the host. For an older driver
# give one that is built for the image's CUDA: the address of a wheel of vLLM's release.
ARG VLLM=
COPY requirements/constraints-cuda.txt requirements/
RUN uv venv --python python3.12 /opt/vllm \
 && uv pip install --no-cache --python /opt/vllm "${VLLM:-$(grep '^vllm==' requirements/constraints-cuda.txt)}" \
 && if [ "${CUDA_VERSION%%.*}" -lt 13 ] && [ -z "${VLLM}" ]; then \
      echo "note: this image has CUDA ${CUDA_VERSION}, vLLM CUDA 13: evaluation takes a driver of 580 or newer"; \
    fi
ENV PROBSFT_VLLM_PYTHON=/opt/vllm/bin/python

COPY . .
RUN python3 tools/install_in_image.py --no-cache

CMD ["bash"]
