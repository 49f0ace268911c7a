# Read inside llama.cpp's own project (CMAKE_PROJECT_llama.cpp_INCLUDE), before it adds its parts: leaves out what
# only its programs need. llama-cpp-python asks for the common library by a forced cache entry, which this hides.
set(LLAMA_BUILD_COMMON OFF)
