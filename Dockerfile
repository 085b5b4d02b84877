# rfflow on a machine with NVIDIA GPUs: docker build -t rfflow .
#
#   docker run --gpus all --ipc=host --rm -it -u "$(id -u):$(id -g)" \
#       -v "$PWD:/work" -v "$HOME/.cache/huggingface:/cache/huggingface" -p 127.0.0.1:6006:6006 \
#       rfflow +recipe=sft --multirun lr=1e-3,1e-4
#
# torch's wheel brings its own CUDA libraries; the host needs the driver and nvidia-container-toolkit.
FROM python:3.11-slim

# gcc: torch.compile and Triton build their kernels with it.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev git && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rfflow
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[api,gguf,math,mlflow,qlora,rag,ray,text,trackio,wandb]" \
    && pip install --no-cache-dir --no-deps -r requirements-demo.txt

# Whoever it runs as: caches in a place that is there and open.
ENV HF_HOME=/cache/huggingface RFFLOW_CACHE=/cache/rfflow HOME=/cache
RUN mkdir -p /cache/huggingface /cache/rfflow && chmod -R 1777 /cache
WORKDIR /work
ENTRYPOINT ["rfflow"]
CMD ["--help"]
