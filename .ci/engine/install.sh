#!/bin/sh
# Installs llama-cpp-python into an environment, where it is not there yet.
#
#     .ci/engine/install.sh PYTHON lean    built from source, without what only llama.cpp's programs need
#     .ci/engine/install.sh PYTHON full    built from source, with the libraries that a llama-server links with
#     .ci/engine/install.sh PYTHON wheel   with ready-made libraries, which `lean` and `full` take too where no C++
#                                          compiler is found
#     .ci/engine/install.sh PYTHON ready   as `wheel` where there are such libraries, else as `lean`
#
# CMAKE_ARGS, where it is set, decides alone how it is built. pip keeps what it built under the name of the
# package, however it was built: what is built in a way of our own is kept in caches apart from pip's.
set -eu

python=$1 kind=$2
engine="llama-cpp-python==0.3.36" # as pyproject.toml has it
here=$(cd "$(dirname "$0")" && pwd)

say() { echo "make: $*" >&2; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
has() { "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1"; }
common() { # whether llama.cpp's common library is there, as a full build makes it
  "$python" -c 'import importlib.util as u, pathlib as p, sys
found = p.Path(u.find_spec("llama_cpp").origin).parents[1].glob("lib*/*llama-common*")
sys.exit(not any(found))'
}
cache() { # the option that names a cache apart from pip's own
  if folder=$(pip cache dir 2>/dev/null); then echo "--cache-dir=$folder/tinylora-edge-$1"; else echo --no-cache-dir; fi
}
compiler() {
  for c in ${CXX:-} c++ g++ clang++; do
    if "$c" --version >/dev/null 2>&1; then return 0; fi
  done
  return 1
}

ready_made() { # the last line is what the two packages name: pip reports an error where it is missing
  SKBUILD_WHEEL_CMAKE=false pip "$(cache wheel)" install --quiet --progress-bar off --no-deps --require-hashes \
    -r "$here/wheel.txt" && pip install --quiet --progress-bar off certifi cffi diskcache jinja2 numpy \
    typing-extensions
}

again=
if has llama_cpp; then
  if [ "$kind" != full ] || common || ! compiler; then exit 0; fi
  again=--force-reinstall
fi
if [ "$kind" = ready ]; then
  if [ -z "${CMAKE_ARGS:-}" ] && ready_made 2>/dev/null; then exit 0; fi
  kind=lean
fi
if [ "$kind" != wheel ] && ! compiler; then
  say "no C++ compiler found: taking ready-made llama.cpp libraries instead (they know AVX2, and nothing newer)"
  kind=wheel
fi

case $kind in
wheel)
  ready_made || {
    say "pip could not get ready-made llama.cpp libraries: what it says is above. Without a network nothing can be" \
      "installed. Where there are none for this platform, either install a C++ compiler (Debian, Ubuntu: apt" \
      "install build-essential; macOS: xcode-select --install), or use the ONNX engine, which needs none:" \
      "pip install -e '.[onnx,cli]'"
    exit 1
  }
  ;;
lean)
  if [ -z "${CMAKE_ARGS:-}" ] && ! pip cache list llama_cpp_python 2>/dev/null | grep -q '\.whl'; then
    say "llama-cpp-python will be built from source, once: about 2 minutes on 2 cores"
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF '-DCMAKE_PROJECT_llama.cpp_INCLUDE=$here/lean.cmake'" \
      pip "$(cache lean)" install --quiet --progress-bar off "$engine"
  else
    pip install --quiet --progress-bar off "$engine"
  fi
  ;;
full)
  say "llama-cpp-python will be built from source, once: about 4 minutes on 2 cores"
  # shellcheck disable=SC2086 # none or one option
  pip install --quiet --progress-bar off $again "$engine"
  ;;
*)
  echo "install.sh: lean, full, wheel or ready, not $kind" >&2
  exit 2
  ;;
esac
