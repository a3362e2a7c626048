"""What has to be so before any test module is imported."""

import os

from deployments.launch import FAST_PATH

# Serve reads these when it is imported, which the collection of the tests already does.
os.environ.update(FAST_PATH)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
