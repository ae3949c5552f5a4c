"""Runs the stand-in until interrupted, and says which environment points a client at it."""

import argparse
import contextlib

from tests.hub_server import HubServer


def main() -> None:
    parser = argparse.ArgumentParser(description="A loopback stand-in for the Hugging Face Hub.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--user", default="alice")
    parser.add_argument("--token", default="hf_alice")
    parser.add_argument("--root", help="folder for large files (default: a temporary one)")
    parser.add_argument("--part-size", type=int)
    args = parser.parse_args()
    with HubServer(args.port, part_size=args.part_size, root=args.root) as hub:
        hub.add_user(args.user, args.token)
        print(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={args.token} HF_HUB_DISABLE_XET=1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            hub.thread.join()


if __name__ == "__main__":
    main()
