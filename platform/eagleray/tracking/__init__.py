"""Send run directories to MLflow.

Nothing outside this folder imports mlflow. Training never calls MLflow. It writes to its directory (`record.py`), and
one thread of the driver sends from there (`sender.py`); `eagleray sync` sends what is left. Each process asks the store
what it already has, at first and again after every failure, so a crash at any point sends nothing twice (`send.py`).

mlflow itself is imported at the first call that needs it: the import takes two seconds.
"""

from eagleray.tracking.read import rows
from eagleray.tracking.send import Sent, Unsent, sync
from eagleray.tracking.sender import Sender, Synced, send_again, sync_all
from eagleray.tracking.server import charts_url, page_url, served_at, ui, ui_base, ui_command
from eagleray.tracking.store import store_uri
from eagleray.tracking.sync_state import is_sent

__all__ = [
    "Sender",
    "Sent",
    "Synced",
    "Unsent",
    "charts_url",
    "is_sent",
    "page_url",
    "rows",
    "send_again",
    "served_at",
    "store_uri",
    "sync",
    "sync_all",
    "ui",
    "ui_base",
    "ui_command",
]
