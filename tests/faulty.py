"""The example of several hosts, but one of its processes kills itself.

FAULT says which, and when: "1 step 7" before it takes step 7, "0 commit 24" when checkpoint 24 is
written and does not have its name yet. A module of its own, so that the launcher imports no JAX.
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import multi_host


def die():
    print("killed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    process, moment, number = os.environ["FAULT"].split()

    def before_commit(event, arguments):  # a checkpoint is complete when it has its final name
        if event == "os.rename" and pathlib.Path(arguments[1]).name == number:
            die()

    if sys.argv[-2:] == ["--process", process]:
        if moment == "commit":
            sys.addaudithook(before_commit)
        else:
            import multi_host_training as training

            rows = training.rows
            training.rows = lambda step: die() if step == int(number) else rows(step)
    multi_host.main()


if __name__ == "__main__":
    main()
