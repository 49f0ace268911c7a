#!/bin/sh
# Builds llama-server, which no package has, for cliff.py and wrong_user.py. The sources are those of llama.cpp
# in llama-cpp-python's sdist, and it is linked with the libraries of the installed version. Only the dozen files
# of the server are compiled: that takes under a minute on two cores, a tenth of the time of all of llama.cpp.
#
#     benchmarks/build_llama_server.sh PYTHON OUTPUT        JOBS=N limits the compilers at work at once
set -eu

python=$1
case $2 in /*) output=$2 ;; *) output=$PWD/$2 ;; esac
cxx=${CXX:-c++}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}

fail() {
  echo "build_llama_server: $*" >&2
  exit 1
}

version=$("$python" -c 'import importlib.metadata as m; print(m.version("llama-cpp-python"))' 2>/dev/null) ||
  fail "llama-cpp-python is not installed for $python"
site=$("$python" -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("llama_cpp").origin).parents[1])')
ls "$site"/lib/libllama-common.* >/dev/null 2>&1 ||
  fail "$site/lib has no libllama-common: llama-cpp-python $version was not built from its sdist here." \
    "Do that (pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python==$version)," \
    "or name a llama-server that there is: LLAMA_SERVER=/path/to/llama-server"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
"$python" -m pip --disable-pip-version-check download --quiet --progress-bar off --no-deps \
  --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$version"
tar xzf "$work"/*.tar.gz -C "$work"
cd "$work"/llama_cpp_python-*/vendor/llama.cpp

# Its web page is left out: the templates are filled in as llama.cpp's own build does without assets.
mkdir "$work/ui" "$work/objects"
for file in ui.h ui.cpp; do
  sed -e 's/@N_ASSETS@/0/' -e 's/@USE_GZIP@/false/' -e '/@ASSET_/d' -e '/^#cmakedefine/d' \
    "tools/ui/$file.in" >"$work/ui/$file"
done

# The definitions are those of llama.cpp's build without OpenSSL, which a server on 127.0.0.1 does not need. Symbols
# are hidden: the libraries have their own copy of httplib, perhaps built with OpenSSL, and the linker must not
# mix the two. -O0 is enough, as all computing is in the libraries.
cat >"$work/compile" <<END
"$cxx" -std=c++17 -O0 -w -fvisibility=hidden -DNDEBUG -DLLAMA_SUBPROCESS \\
  -DCPPHTTPLIB_FORM_URL_ENCODED_PAYLOAD_MAX_LENGTH=1048576 -DCPPHTTPLIB_REQUEST_URI_MAX_LENGTH=32768 \\
  -DCPPHTTPLIB_LISTEN_BACKLOG=512 -DCPPHTTPLIB_TCP_NODELAY=1 \\
  -Iinclude -Iggml/include -Icommon -Ivendor -Itools/mtmd -Itools/server -I. -I"$work/ui" \\
  -c "\$1" -o "$work/objects/\$(basename "\$1").o"
END
ls -S tools/server/*.cpp vendor/cpp-httplib/httplib.cpp "$work/ui/ui.cpp" |
  xargs -n 1 -P "$jobs" sh "$work/compile" || fail "$cxx could not compile llama-server $version"
"$cxx" "$work"/objects/*.o -o "$work/llama-server" -L"$site/lib" -Wl,-rpath,"$site/lib" \
  -lllama-common -lmtmd -lllama -lggml -lggml-base -lpthread || fail "llama-server $version could not be linked"

"$work/llama-server" --version >/dev/null 2>&1 || fail "what was built does not start"
cp "$work/llama-server" "$output.new"
mv "$output.new" "$output"
