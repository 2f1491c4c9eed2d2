"""Several hosts: one command starts processes that train together, and goes on where it was cut.

    python examples/multi_host.py checkpoints --processes 2 --devices 4 --storage packed

Kill any of it at any moment and give the command again: it resumes from the last complete
checkpoint, on the processes and devices that it is given then.
"""

import argparse
import functools
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

BLOCKS = 8  # of 16 images: a batch, on any number of devices that divides 8


def launch(processes):
    """Runs this command in several processes; when one of them fails, none goes on."""
    with socket.socket() as reserved:  # until the end, so that only process 0 gets this port, too
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        command = [sys.executable, *sys.orig_argv[1:], "--address", address, "--process"]
        start = functools.partial(subprocess.Popen, stdin=subprocess.PIPE)
        workers = [start([*command, str(index)]) for index in range(processes)]
        while None in (codes := [worker.poll() for worker in workers]) and not any(codes):
            time.sleep(0.02)
        for worker in workers:
            worker.kill()
            worker.communicate()
    return f"a process ended with {next(filter(None, codes))}" if any(codes) else 0


def end_with_the_launcher():
    sys.stdin.read()  # comes back when the launcher is gone, however it went
    os._exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="of the checkpoints")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4, help="of each process")
    parser.add_argument("--storage", choices=("full", "packed"), default="full")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--address", help=argparse.SUPPRESS)  # these two from the launcher
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.processes, args.devices) < 1 or BLOCKS % (args.processes * args.devices):
        parser.error(f"{args.processes} * {args.devices} devices do not divide {BLOCKS} blocks")
    if args.process is None:
        sys.exit(launch(args.processes))
    threading.Thread(target=end_with_the_launcher, daemon=True).start()
    import multi_host_training as training  # only here: the launcher needs no JAX

    training.join(args.address, args.processes, args.process, args.devices)
    training.train(args.folder, args.steps, args.save_every, args.storage)


if __name__ == "__main__":
    main()
