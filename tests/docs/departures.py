"""Where the code of the documents is not run as it is printed, and why. Everything else is.

A test fails on an entry that nothing needs.
"""

from __future__ import annotations

NOT_RUN = {
    ("", "make "): "sets up environments, builds and trains for minutes: CI runs the targets themselves",
    (
        "",
        "pip install ",
    ): "changes the environment: tests/packaging/test_distributions.py installs the extras",
    (
        "",
        "tinylora-edge export qwen",
    ): "downloads gigabytes: tests/exporters/hub/test_hub.py has a hub of its own",
    (
        "",
        "tinylora-edge export Qwen",
    ): "downloads gigabytes: tests/exporters/hub/test_hub.py has a hub of its own",
    (
        "",
        "tinylora-edge export me/",
    ): "downloads gigabytes: tests/exporters/hub/test_hub.py has a hub of its own",
    ("", "tinylora-edge train "): "minutes: tests/cli/commands/training/test_cli_train.py, on a small model",
    ("", "tinylora-edge learn "): "minutes: tests/cli/commands/training/test_cli_learn.py, on a small model",
    (
        "",
        "tinylora-edge distill ",
    ): "minutes: tests/cli/commands/training/test_cli_learn.py, on a small model",
    ("", ".*--against best-prompt"): "a search of minutes: tests/cli/commands/training/test_cli_against.py",
    ("", ".*--format (onnx|both)"): "minutes: tests/exporters/onnx/test_onnx_build.py, on small models",
    ("", "python -m tinylora_edge.train.trl "): "needs GPUs: tests/docs/test_recipes_doc.py parses it",
    ("README.md", "tinylora_edge/ "): "a tree of folders",
    ("docs/ARCHITECTURE.md", ""): "a drawing of the layers, and a tree of folders: tests/test_layers.py",
    ("docs/FORMAT.md", ""): "the notation of bytes and rules: tests/docs/test_format_doc.py computes them",
    ("docs/FEEDBACK.md", r"P\(like\) ="): "a formula",
    ("docs/LEARNED_BASIS.md", "all of R"): "a drawing",
    ("docs/SHIPPING.md", "<target>/"): "a listing of files: tests/shipping/test_publish.py makes it",
    ("docs/SHIPPING.md", "(llama-server|curl) "): (
        "is shortened: tests/exporters/test_convert.py asks a stock server"
    ),
    ("docs/LEARNED_BASIS.md", "tinylora-edge vector new mine-named"): (
        "of a basis that takes minutes to learn: tests/cli/commands/vectors/test_cli_axes.py"
    ),
    ("docs/TRAINING.md", ".*--drift"): (
        "answers 228 prompts: tests/cli/commands/training/test_cli_train.py measures the drift"
    ),
    (
        "docs/SECURITY.md",
        "",
    ): "an exercise over years: tests/shipping/test_exercise.py runs it, by a clock of its own",
    ("docs/MODELS.md", r'\["support-bot'): "a catalogue: tests/docs/test_models_doc.py reads it",
    ("docs/MODELS.md", "from tinylora_edge import exporters"): (
        "downloads gigabytes: tests/docs/test_models_doc.py has its names"
    ),
    ("docs/EXPORTING.md", r".*\$SLURM"): "needs a cluster: tests/exporters/test_parts.py exports parts",
    ("docs/EVIDENCE.md", "python benchmarks/"): "a study of hours",
    ("benchmarks/README.md", ".venv/bin/python"): "benchmarks of minutes to hours",
    ("recipes/README.md", "sh gsm8k.sh"): "needs GPUs",
    (
        "recipes/README.md",
        "accelerate launch ",
    ): "needs two machines: tests/docs/test_recipes_doc.py parses it",
    ("recipes/README.md", "srun python -m"): "needs a cluster: tests/docs/test_recipes_doc.py parses it",
    (
        "recipes/README.md",
        "python recipes/math_boxed.py",
    ): "needs MATH: tests/docs/test_recipes_doc.py parses it",
    ("", "(VLLM_ALLOW.* )?vllm serve"): "needs vLLM and a GPU",
    ("", "ollama "): "needs Ollama: tests/exporters/test_convert.py has llama.cpp take the file",
    ("recipes/serve/README.md", "python -m sglang"): "needs SGLang and a GPU",
    ("recipes/serve/README.md", "curl "): "asks vLLM or SGLang, which need a GPU",
    ("examples/browser/README.md", "(npm ci|python serve.py)"): (
        "needs Node.js and a browser: tests/examples/test_browser_page.py has both"
    ),
    ("examples/native/README.md", "SITE="): "compiles: tests/examples/test_native.py does it",
    ("examples/native/README.md", "cc "): "compiles: tests/examples/test_native.py does it",
    ("examples/native/README.md", "./personalize"): "was compiled: tests/examples/test_native.py runs it",
    ("examples/native/README.md", "var scales"): "Swift: needs Xcode",
    ("examples/native/README.md", "JNIEXPORT"): "a declaration for Android's NDK",
    ("examples/native/README.md", "await context"): "needs a phone with llama.rn",
}
"""(document or none, an expression for how a block or a command begins) -> why it is not run.

Commands of ours are parsed instead."""

ADDED = {
    "tinylora-edge tune ": ("--budget 10ktokens --prompts 2 --max-tokens 8", "five minutes"),
    "tinylora-edge eval ": ("-n 4", "a quarter of a minute"),
    "tinylora-edge serve ": ("--port 0", "the printed port may be taken"),
    "curl ": ("--silent --show-error --fail-with-body", "so that a refusal is an error"),
    "tinylora-edge play ": ("--no-open", "there is no browser"),
}
"""How a command begins -> words that are added to it, and why, or what it takes without them."""

REPLACED = {
    "BUNDLE": "bundle",
    "MODEL": "my-model.gguf",
    "TASK": "brevity",
    "/srv/vectors": "srv",
}
"""What stands for the reader's own -> what there is. Addresses are those of servers that run."""

_USERS = """
import base64, json
from pathlib import Path
from tinylora_edge import Ed25519Signer, Ed25519Verifier, MicroVector, load_basis

basis = load_basis("out/demo/basis.gguf")
signer = Ed25519Signer.from_pem(Path("fleet.key").read_bytes())
key = Ed25519Verifier.from_pem(Path("fleet.key.pub").read_bytes())
alice_bytes, bob_bytes = (
    MicroVector.random(basis, 0.2).to_bytes(basis, signer, stream=name) for name in ("alice", "bob")
)
vectors, frame = {"alice": alice_bytes}, bob_bytes
frame_as_base64url = base64.urlsafe_b64encode(bob_bytes).decode()
line = {"user": "alice", "frame": base64.urlsafe_b64encode(alice_bytes).decode()}
Path("users.jsonl").write_text(json.dumps(line) + "\\n")
Path("alice.bin").write_bytes(alice_bytes)
messages = [{"role": "user", "content": "Hello!"}]
"""


def _vectors(*names: str) -> list[str]:
    return [f"tinylora-edge vector new out/demo -o {name} --random 0.2 --seed 1" for name in names]


_MODELS = ("import models", "from pathlib import Path")
_LOADED = (
    "from tinylora_edge import runtime",
    "llm = runtime.load('out/demo', n_ctx=512, verbose=False)",
)

BEFORE: dict[str, list[str]] = {
    "docs/TOUR.md": [
        *_MODELS,
        "models.write_gguf(models.tiny_model('llama'), Path('my-model.gguf'))",
    ],
    "docs/EXPORTING.md": [*_MODELS, "models.split_gguf(Path('my-model.gguf'), Path(), 7)"],
    "docs/FEEDBACK.md": [
        "from pathlib import Path",
        *("Path('users').mkdir()", *_vectors("users/a.bin", "users/b.bin")),
    ],
    "docs/LEARNED_BASIS.md": [
        *("import os", "os.link('my-model.gguf', 'SmolLM2-135M-Instruct.Q4_1.gguf')"),
        "os.link('my-model.gguf', 'model.gguf')",
        "questions = [f'What is a {thing}?' for thing in ('river', 'lake', 'bee', 'sea', 'cat', 'dog')]",
        *_LOADED,
    ],
    "docs/ONNX.md": [
        *("tinylora-edge keygen fleet.key", _USERS),
        "alice, bob = (MicroVector.random(basis, 0.2, seed=seed) for seed in (0, 1))",
        "alice_bytes, bob_bytes = alice.to_bytes(basis, stream='alice'), bob.to_bytes(basis, stream='bob')",
        "vector_bytes, other_bytes = alice.to_bytes(basis), bob.to_bytes(basis)",
        "prompts = ['Hello', 'Yes', 'No']",
        "import numpy as np, onnx_models",
        "feeds = onnx_models.feeds(onnx_models.session(Path('out/demo/onnx')), [[1, 2], [3, 4]])",
    ],
    "docs/SERVING.md": [
        *("tinylora-edge keygen fleet.key", _USERS, *_vectors("vector.bin")),
        "tinylora-edge vectors import users.jsonl users.db out/demo",
        *("from fastapi import FastAPI", "app = FastAPI()"),
    ],
    "docs/SHIPPING.md": ["tinylora-edge vector new BUNDLE -o trained.bin --random 0.2"],
    "docs/TRAINING.md": [
        "tinylora-edge vector new BUNDLE -o v.bin --random 0.2",
        *(*_MODELS, "import numpy as np"),
        "ab = np.ones((4, 64)) / 9, np.ones((64, 4)) / 9",
        "models.write_lora(Path('lora.gguf'), 'llama', {'blk.0.attn_q.weight': ab}, alpha=4.0)",
    ],
    "docs/TUNING.md": [
        *("prompts = ['a', 'b', 'c', 'd']", "def reward(completion, sample):\n    return 0.0"),
    ],
    **dict.fromkeys(
        (
            *("docs/how_to/ship/radio_and_qr.md", "docs/how_to/ship/many_users.md"),
            *(
                f"docs/how_to/engines/{name}.md"
                for name in ("llama_server", "ollama", "vllm", "phone", "peft")
            ),
        ),
        _vectors("brief.bin"),
    ),
    "docs/how_to/personalize/format.md": _vectors("json.bin"),
    "docs/how_to/personalize/style.md": _vectors("house.bin"),
    "docs/how_to/personalize/short_answers.md": _vectors("out/demo/vector.bin", "brief.bin"),
    "examples/native/README.md": [
        "tinylora-edge vector new BUNDLE -o vector.bin --random 0.2",
        *("import shutil", "shutil.copytree('bundle', 'smollm2')"),
    ],
    "recipes/serve/README.md": [
        *("tinylora-edge keygen fleet.key", _USERS, "import os", "os.rename('weights', 'smollm2-hf')"),
    ],
}
"""Document -> what it assumes, as commands and Python."""
