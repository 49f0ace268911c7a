#!/bin/sh
# What an ARM64 device computes, on a machine that is none: `make arm`. Debian's arm64 Python runs under qemu-user,
# with the aarch64 wheels of numpy and ONNX Runtime and a llama.cpp that is compiled for armv8-a. All of it lies in
# .arm/; a step that is done is not done again. To begin anew: rm -r .arm
#
#     .ci/arm/run.sh PYTHON      PYTHON: of this machine, with the development packages
set -eu

python=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
arm=$root/.arm site=$root/.arm/site
engine=$root/.ci/engine/wheel.txt
llama=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' "$engine")

say() { echo "make: $*" >&2; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

missing=
for one in qemu-aarch64:qemu-user aarch64-linux-gnu-g++:g++-aarch64-linux-gnu cmake:cmake make:make apt-get:apt; do
  command -v "${one%%:*}" >/dev/null || missing="$missing ${one#*:}"
done
if [ -n "$missing" ]; then
  say "an ARM64 machine is emulated with packages that are not here; on Debian 13: apt install$missing"
  exit 1
fi
mkdir -p "$arm/wheels"

# A state of apt's own, in which nothing is installed: what python3.13 needs is fetched to its last library, without
# root, and this system's packages stay as they are.
if [ ! -e "$arm/root/.made" ]; then
  say "fetching Debian's Python for arm64: 15 MB"
  mkdir -p "$arm/apt/lists/partial" "$arm/apt/cache/archives/partial"
  : >"$arm/apt/status"
  cat >"$arm/apt/conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
Dir::State "$arm/apt";
Dir::State::status "$arm/apt/status";
Dir::Cache "$arm/apt/cache";
END
  export APT_CONFIG="$arm/apt/conf"
  apt-get -qq update
  apt-get -qq -y --download-only install python3.13-minimal libpython3.13-stdlib libstdc++6 >"$arm/apt/log"
  unset APT_CONFIG
  for package in "$arm"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$arm/root"; done
  ln -sfn usr/lib "$arm/root/lib"
  touch "$arm/root/.made"
fi

if [ ! -e "$site/.made" ]; then
  say "fetching the wheels of a device for aarch64: 60 MB"
  pip download --quiet --progress-bar off --dest "$arm/wheels" --only-binary :all: --python-version 3.13 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    'numpy>=1.26' 'gguf>=0.18' 'onnxruntime>=1.31' 'onnxruntime-genai>=0.18' diskcache jinja2 typing-extensions \
    cryptography hypothesis pip psutil pytest setuptools
  for wheel in "$arm"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
  touch "$site/.made"
fi

# The sdist that .ci/engine pins, whose Python is beside its C++; generic armv8-a, as on any 64-bit ARM.
source=$arm/llama_cpp_python-$llama
if [ ! -e "$site/llama_cpp/lib/.made" ]; then
  if [ ! -e "$source/PKG-INFO" ]; then
    say "fetching llama-cpp-python $llama: 77 MB"
    sed -n '/^llama-cpp-python/,/sha256/p' "$engine" >"$arm/engine.txt"
    pip download --quiet --progress-bar off --dest "$arm" --no-deps --no-binary llama-cpp-python --require-hashes \
      -r "$arm/engine.txt"
    tar -xzf "$source.tar.gz" -C "$arm"
  fi
  say "compiling llama.cpp for aarch64, once: about 3 minutes on 2 cores (log: .arm/llama.log)"
  {
    cmake -S "$source/vendor/llama.cpp" -B "$arm/build" -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Release \
      -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc \
      -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DGGML_CPU_ARM_ARCH=armv8-a -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF \
      -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$ORIGIN' \
      -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF \
      -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF &&
      cmake --build "$arm/build" --target llama -j "$(nproc)"
  } >"$arm/llama.log" 2>&1 || { tail -n 20 "$arm/llama.log" >&2; exit 1; }
  rm -rf "$site/llama_cpp"
  cp -r "$source/llama_cpp" "$site/llama_cpp"
  mkdir -p "$site/llama_cpp/lib" "$site/llama_cpp_python-$llama.dist-info"
  cp "$source/PKG-INFO" "$site/llama_cpp_python-$llama.dist-info/METADATA"
  for library in "$arm"/build/bin/lib*.so.?; do # what programs ask for; the bindings ask for lib*.so
    aarch64-linux-gnu-strip -o "$site/llama_cpp/lib/${library##*/}" "$library"
    ln -sf "${library##*/}" "$site/llama_cpp/lib/$(basename "${library%.?}")"
  done
  touch "$site/llama_cpp/lib/.made"
fi

rm -rf "$arm/source" "$arm/ours"
mkdir "$arm/source"
git -C "$root" archive HEAD | tar -x -C "$arm/source"
TINYLORA_EDGE_PURE=1 pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$arm/ours" "$arm/source"

# A cortex-a72 is a Raspberry Pi 4: armv8-a, and nothing that is slow to emulate (pointer authentication).
cat >"$arm/python" <<END
#!/bin/sh
export PYTHONPATH='$site:$root' PYTHONPYCACHEPREFIX='$arm/pyc' PYTHONDONTWRITEBYTECODE=
exec qemu-aarch64 -cpu cortex-a72 -L '$arm/root' '$arm/root/usr/bin/python3.13' "\$@"
END
chmod +x "$arm/python"

# `make try`, in a checkout of its own: a .so that is built here is for x86-64. pip is emulated too, and what it installs
# lies in .arm/try, which takes the place of an environment. llama.cpp is the one from above: it is there, so that
# .ci/engine/install.sh builds none, which would take hours under emulation.
mkdir -p "$arm/try/bin" "$arm/try/first"
touch "$arm/try/pyvenv.cfg"
echo "import sys; sys.executable = '$arm/try/bin/python'" >"$arm/try/first/sitecustomize.py"
sed -e "s|^export PYTHONPATH=[^ ]*|export PYTHONPATH='$arm/try/first:$site' PYTHONUSERBASE='$arm/try'|" \
  "$arm/python" >"$arm/try/bin/python"
chmod +x "$arm/try/bin/python"
say "make try, emulated: 10 minutes"
rm -f "$arm/try/.made"
PIP_USER=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1 TINYLORA_EDGE_PURE=1 \
  make -C "$arm/source" --no-print-directory try TRY="$arm/try" PYTHON=false DEMO_ARGS="--threads 1"

cd "$root"
say "golden projections, digests, bases and frames, by numpy on aarch64"
"$arm/python" -m pytest -q -p no:cacheprovider -k golden tests/core/test_projection.py tests/core/test_basis.py \
  tests/core/test_vector.py tests/wire/test_text.py
say "the same, by the C library, compiled for aarch64"
CC=aarch64-linux-gnu-gcc RUNNER="qemu-aarch64 -L $arm/root" \
  "$python" -m pytest -q -p no:cacheprovider -k golden tests/native/test_reader.py
say "models on both engines, beside x86-64: 6 minutes on 2 cores"
exec "$python" .ci/arm/measure.py
