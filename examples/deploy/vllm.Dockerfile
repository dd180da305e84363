# vllm serve that answers guarded, without root. Linted (hadolint); no image was built from it where it was written.
FROM vllm/vllm-openai:v0.32.0
COPY . /source
RUN pip install --no-cache-dir '/source[postgresql,console,audit]' \
    && useradd --system --uid 10001 --home-dir /var/lib/guard --create-home guard
ENV VLLM_PLUGINS=guard GUARD_CONFIG=/etc/guard/guard.yaml \
    HOME=/tmp XDG_CACHE_HOME=/tmp VLLM_CACHE_ROOT=/tmp/vllm PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/guard
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=1200s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["vllm", "serve"]
CMD ["/mnt/models", "--host", "0.0.0.0", "--port", "8080"]
