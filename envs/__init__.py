"""Environments as `gymnasium.Env`; importing this package registers `tabletop/<task>-v0` and loads no simulator.

Where gymnasium is not installed nothing is registered: models and losses use this package's types and options alone.
"""

import importlib.util

from envs.tabletop import TASK_NAMES

if importlib.util.find_spec("gymnasium") is not None:
    import gymnasium

    for _task in TASK_NAMES:
        gymnasium.register(
            id=f"tabletop/{_task}-v0", entry_point="envs.tabletop.env:TabletopEnv", kwargs={"task": _task}
        )
