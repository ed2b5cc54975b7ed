# megatron_probsft on NVIDIA's PyTorch container.
#   docker build -t megatron_probsft --build-arg NGC_PYTORCH=IMAGE .   # IMAGE: nvidia/pytorch of NGC
#   docker run --rm -it --gpus all --ipc=host -v "$PWD/runs:/workspace/megatron_probsft/runs" megatron_probsft
#
# The container's own torch, Transformer Engine, Apex and flash-attn are built for its driver and CUDA: they
# are kept. vLLM pins another torch, so it lives in an environment of its own.
ARG NGC_PYTORCH
FROM ${NGC_PYTORCH}

WORKDIR /workspace/megatron_probsft
RUN pip install --no-cache-dir uv

# vLLM first: its layer changes least.
COPY requirements/constraints-cuda.txt requirements/
RUN uv venv --python python3.12 /opt/vllm \
 && uv pip install --no-cache --python /opt/vllm "$(grep '^vllm==' requirements/constraints-cuda.txt)"
ENV PROBSFT_VLLM_PYTHON=/opt/vllm/bin/python

# What the container brings stays as it is: its versions become constraints of our installation.
COPY . .
RUN ours='^(torch|transformer.engine|apex|flash.attn|triton|nvidia)' \
 && pip list --format=freeze | grep -iE "$ours" > /tmp/container.txt \
 && uv pip install --no-cache --system --break-system-packages --constraint /tmp/container.txt \
      --override requirements/overrides-cuda.txt --editable '.[quickstart,domains,dev]' \
 && pip list --format=freeze | grep -iE "$ours" | diff /tmp/container.txt -

CMD ["bash"]
