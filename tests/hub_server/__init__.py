"""A small loopback stand-in for the Hugging Face Hub, made to be driven by the real `huggingface_hub` client.

    with HubServer() as hub:                       # binds 127.0.0.1 on a free port
        hub.add_user("alice", token="hf_alice")
        hub.publish("alice/model", {"config.json": b"{}"})
        HfApi(endpoint=hub.endpoint)               # or HF_ENDPOINT in the environment before the client is imported

State lives in memory, except large files, which lie in a temporary folder keyed by sha256. `hub.fault(...)` makes the
next matching requests fail (status code, dropped connection, delay); `hub.log` lists every request that was served.
As a command, for transformers and others that take the endpoint from the environment alone:
`python -m tests.hub_server --port 8765`.
"""

from tests.hub_server.server import HubServer
from tests.hub_server.state import Blob, Commit, Fault, Repo, Request, User


__all__ = ["Blob", "Commit", "Fault", "HubServer", "Repo", "Request", "User"]
