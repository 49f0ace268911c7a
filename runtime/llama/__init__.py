"""llama.cpp: the engine of GGUF bundles. Importing this folder loads no engine."""

from ...process import set_waiting
from ..libraries import point_to_libraries

# Before any module here imports llama_cpp: its libraries are found then, and read how threads are to wait.
point_to_libraries()
set_waiting()
