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
COPY pyproject.toml ./
RUN uv venv --python python3.12 /opt/vllm \
 && uv pip install --no-cache --python /opt/vllm "$(grep -o 'vllm==[0-9.]*' pyproject.toml | head -1)"
ENV PROBSFT_VLLM_PYTHON=/opt/vllm/bin/python

# What the container brings stays as it is: every package that it has is written down as a constraint, and
# megatron-core goes in without the requirements that would pull another torch.
COPY . .
RUN pip freeze --exclude-editable | grep -E '^(torch|transformer.engine|apex|flash.attn|triton|nvidia)' \
      | sed -n 's/^\([A-Za-z0-9_.-]*\)==\([^ ]*\)$/\1==\2/p' > /tmp/container.txt \
 && pip install --no-cache-dir --constraint /tmp/container.txt --editable '.[quickstart,dev]' \
 && python -c "import torch, transformer_engine.pytorch; print(torch.__version__)"

CMD ["bash"]
