#!/usr/bin/env bash
# Build llama.cpp's own server from the sources that the installed llama-cpp-python was built from, so that
# benchmarks/clients.py compares one llama.cpp with itself. Prints the program's path.
#
#     benchmarks/llama_server.sh FOLDER        # outside the repository; 300 MB, some 15 minutes on one core
#
# It builds like llama-cpp-python does: for this machine's CPU, with OpenMP where there is one. No web page is embedded,
# since that would be fetched from a hub.
set -euo pipefail

folder=$1
version=$(python -c "from importlib.metadata import version; print(version('llama-cpp-python'))")
mkdir -p "$folder"
cd "$folder"
archive=llama_cpp_python-$version.tar.gz
[ -f "$archive" ] || python -m pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" >&2
[ -d "${archive%.tar.gz}" ] || tar xzf "$archive"
cmake -S "${archive%.tar.gz}/vendor/llama.cpp" -B "build-$version" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_OPENSSL=OFF >&2
nice -n 19 cmake --build "build-$version" --target llama-server -j "${JOBS:-1}" >&2
echo "$PWD/build-$version/bin/llama-server"
