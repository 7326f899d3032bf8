# An image for every node of a cluster: Python, Ray, Eagleray. From the root of the repository:
#     docker build -t REGISTRY/eagleray:0.1.0 . && docker push REGISTRY/eagleray:0.1.0
# The registry's torch brings its CUDA libraries; the machines need an NVIDIA driver of 580 or newer, or no GPU at all.
FROM python:3.12-slim-bookworm

# wget: KubeRay's probes call it.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

WORKDIR /home/ray/eagleray
COPY pyproject.toml README.md LICENSE CONTRIBUTING.md CHANGELOG.md SECURITY.md ./
COPY docs docs
COPY sweeps sweeps
COPY platform platform
COPY methods methods
RUN pip install --no-cache-dir '.[cluster,s3,gs]'

USER ray
WORKDIR /home/ray
