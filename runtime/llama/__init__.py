"""llama.cpp: the engine of GGUF bundles. Importing this folder loads no engine."""

from ..libraries import point_to_libraries
from ..threads import set_waiting

# Before any module here imports llama_cpp: its libraries are found then, and read how threads are to wait.
point_to_libraries()
set_waiting()
