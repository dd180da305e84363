"""guard serve as replicas of Ray Serve; `ray-serve.yaml` beside this file deploys it.

Each replica loads what the file that ``GUARD_CONFIG`` names describes, and answers as guard serve does.
"""

import atexit
import os
from contextlib import ExitStack
from typing import Any

from ray import serve

from guard.serve import create_application
from guard.serve.config import ListenSection, load_config
from guard.serve.loading import loaded_server

#: What a replica has loaded; it is closed when its process ends.
opened = ExitStack()
atexit.register(opened.close)


def application() -> Any:
    """Load the server of one replica."""
    # Ray's proxies listen on every address, so that guard's rule for that applies: requests need a key.
    config = load_config(os.environ["GUARD_CONFIG"]).model_copy(update={"listen": ListenSection(host="0.0.0.0")})
    return create_application(opened.enter_context(loaded_server(config)))


app = serve.deployment(name="guard")(serve.ingress(application)()).bind()
