"""The processes of one run: where one ends before its time, all end, at once, with its reason and its exit code.

Collectives do not see to that: gloo reports a closed connection, NCCL waits for half an hour, and neither says why. A
time-out short enough to help would end a run whose first process saves a big file, and a heartbeat would take a process
that is swapped out for dead. So every process keeps a connection to the first one, over which nothing is sent while all
is well. The system closes it with the process, however that ends, and keep-alive probes find a machine that is gone.

Until the processes have found each other, whoever launched them watches: this program those that it launched itself,
torchrun and ``srun --kill-on-bad-exit`` theirs. A process that this program launched is ended by the system with the
one that launched it.
"""

from lightning_app.peers.company import (
    PeerEnded,
    company,
    conclude,
    has_others,
    is_of_another,
    join,
    watch_children,
    with_cleanup,
)
from lightning_app.peers.launching import end_with_parent, launches_processes

__all__ = [
    "PeerEnded",
    "company",
    "conclude",
    "end_with_parent",
    "has_others",
    "is_of_another",
    "join",
    "launches_processes",
    "watch_children",
    "with_cleanup",
]
