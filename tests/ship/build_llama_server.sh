#!/bin/sh
# Builds llama-server, which no package brings, from the llama.cpp sources inside llama-cpp-python's sdist:
# the same sources as the library that is installed. Puts it beside the Python that is given.
#
#     tests/ship/build_llama_server.sh .venv/bin/python
set -eu
python=$1
bin=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
version=$("$python" -c 'import importlib.metadata; print(importlib.metadata.version("llama-cpp-python"))')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"$python" -m pip download --quiet --no-deps --no-binary :all: "llama-cpp-python==$version"
tar xzf ./*.tar.gz
cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
cmake --build build --target llama-server --parallel "${JOBS:-1}"
install build/bin/llama-server "$bin/llama-server"
