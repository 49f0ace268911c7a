"""The server on Ray Serve: replicas of one model; a user's requests go to the replica that has his prefix.

    pip install "tinylora-edge[llama,ray]"
    BUNDLE=smollm2 STORE=users.db MAC=fleet.mac serve run --app-dir recipes/serve ray_serve:server

A client names its user in the header `X-Session-ID` (RAY_SERVE_SESSION_ID_HEADER_KEY names another), and a
consistent hash gives him a replica; without it requests go anywhere, and answers are the same. The header
routes only: the request says whose vector it is. Settings come from the environment, which all nodes need:

    BUNDLE      the bundle, at the same path on every node
    STORE       of users' vectors: an SQLite file on one node; across nodes a published layout (s3://...)
    MAC, KEY    files of the trusted MAC key and public key; SERVE_API_KEYS a file of API keys
    REPLICAS    2; CORES of each, 1; CONTEXTS of each, as many
"""

import os

from ray import serve
from ray.serve.config import RequestRouterConfig

CORES = int(os.environ.get("CORES", "1"))


def build():
    """Return the server of one replica as an ASGI app; this runs where the replica does."""
    from pathlib import Path

    from tinylora_edge import Ed25519Verifier, Hmac
    from tinylora_edge.serve import ApiKeys, app

    keys = []
    if mac := os.environ.get("MAC"):
        keys.append(Hmac.from_hex(Path(mac).read_text("utf-8").strip()))
    if key := os.environ.get("KEY"):
        keys.append(Ed25519Verifier.from_pem(Path(key).read_bytes()))
    api_keys = os.environ.get("SERVE_API_KEYS")
    return app(
        os.environ["BUNDLE"],
        store=os.environ.get("STORE"),
        keys=keys,
        api_keys=ApiKeys.read(api_keys) if api_keys else None,
        contexts=int(os.environ.get("CONTEXTS", CORES)),
        n_threads=CORES,
        n_ctx=int(os.environ.get("N_CTX", "2048")),
    )


server = serve.deployment(
    serve.ingress(build)(),
    name="tinylora-edge",
    num_replicas=int(os.environ.get("REPLICAS", "2")),
    max_ongoing_requests=256,  # the pool in a replica makes users take turns
    graceful_shutdown_timeout_s=5,  # the server ends its streams in 2
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": CORES},
    request_router_config=RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
    ),
).bind()
