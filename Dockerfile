# edgekit with every CPU runtime: docker run --rm -v "$PWD:/work" edgekit build model.py:factory --target tflite-int8 …
FROM python:3.12-slim
RUN useradd --create-home edgekit
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY edgekit /src/edgekit
COPY targets /src/targets
COPY devices /src/devices
COPY examples /src/examples
RUN pip install --no-cache-dir -c /src/constraints.txt torch --extra-index-url https://download.pytorch.org/whl/cpu \
 && pip install --no-cache-dir -c /src/constraints.txt '/src[tflite,openvino,huggingface,zstd,compress,report]'
USER edgekit
WORKDIR /work
ENV EDGEKIT_CACHE=/home/edgekit/.cache/edgekit
ENTRYPOINT ["edgekit"]
