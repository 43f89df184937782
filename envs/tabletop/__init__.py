"""Bimanual table-top tasks on MuJoCo with RoboTwin's observation and action interface.

Same task names, table and reset ranges in spirit as RoboTwin 2.0, but its own mesh-free scene, fixed 12.5 Hz control
and own success thresholds: scores are `tabletop/<task>` and are not comparable with RoboTwin's.
Importing this package imports neither mujoco nor GL; `envs.tabletop.env.TabletopEnv` does.
"""

TASK_NAMES = ("handover_block", "stack_blocks_two", "blocks_ranking_rgb", "grab_roller", "lift_pot")
VARIANTS = ("clean", "randomized")
MODES: dict[str, dict[str, bool]] = {
    "handover_block": {"edge_grasp": False, "edge_release": False, "other_face": True},
    "stack_blocks_two": {"edge_release": False, "other_face": True},
    "blocks_ranking_rgb": {"other_face": True},
    "grab_roller": {"edge_grasp": False},
    "lift_pot": {"edge_grasp": False},
}
"""By task the ways in which its expert can act beside its own, and whether they solve the task.

edge_grasp: takes the object by its edge and loses it. edge_release: puts it down beside its place. other_face: takes it
a quarter turn from the faces that it prefers.
"""
WITHOUT_TOLERANCE = ("grab_roller",)
"""Tasks in which no distance decides about success."""
