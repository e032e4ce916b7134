"""What every worker process of this project does first."""

import os
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread


def end_with_parent() -> None:
    """Without the parent there is no work: it may have been killed, and whoever resumes must not find this process
    beside them."""
    parent = parent_process()

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=follow, daemon=True).start()
