#!/usr/bin/env bash
# Runs the LangChain tests with the oldest supported versions of LangChain, in an environment of its
# own that takes everything else (engines, torch) from the development environment.
#
#   tests/langchain/oldest.sh [FOLDER] [PYTEST OPTIONS ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.venv-oldest}
shift || true
development=${DEVELOPMENT_PYTHON:-.venv/bin/python}

if [ ! -e "$folder/.ready" ]; then
    "$development" -m venv "$folder"
    "$folder/bin/python" -m pip --disable-pip-version-check install --quiet \
        'langchain-core==1.0.*' 'langchain==1.0.*' 'langchain-tests==1.0.*' 'langgraph==1.0.*' \
        'langgraph-prebuilt<1.0.6' 'langgraph-checkpoint==3.0.*' 'langgraph-checkpoint-sqlite==3.0.*'
    packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    # Appended to the path, so that what was installed here comes first.
    packages "$development" > "$(packages "$folder/bin/python")/development.pth"
    touch "$folder/.ready"
fi
"$folder/bin/python" -c 'from importlib.metadata import version as v; print("langchain-core", v("langchain-core"))'
exec "$folder/bin/python" -m pytest -q -p no:cacheprovider tests/langchain "$@"
