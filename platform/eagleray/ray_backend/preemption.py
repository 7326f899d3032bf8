"""Hear that this process, or the node that it runs on, is about to be ended."""

import os
import signal
import threading
import time
from collections.abc import Set

import ray.exceptions
from ray._private.state import state

from eagleray.contracts.report import Preempted
from eagleray.ray_backend.signals import here
from eagleray.runs.notice import Notice

EVERY = 1.0  # seconds between two questions whether the node is drained
NOTICE = Notice(Preempted("its machine is taken away; everything up to the last step is saved"))  # of this process


def listen() -> None:
    """Take SIGTERM as the notice, and Ray's word that this node is drained; only an actor's main thread can.

    Ray tells it of a spot machine that is taken back, of `ray drain-node`, and of a node that is stopped by SIGTERM.
    """
    NOTICE.heed(signal.SIGTERM)
    threading.Thread(target=_ask, daemon=True).start()


def drained() -> Set[str]:
    """Return the nodes that are about to go."""
    return state.get_draining_nodes().keys()


def _ask() -> None:
    node = here()
    while not NOTICE.came:
        time.sleep(EVERY)
        try:
            is_drained = node in drained()
        except ray.exceptions.RayError:  # a head that does not answer now; without one, this process ends anyhow
            continue
        if is_drained:
            os.kill(os.getpid(), signal.SIGTERM)
            return
