"""The box robot: RoboTwin's tasks on a CPU and without its assets, for the five of them that use none.

RoboTwin's own robots are downloaded, their planner (curobo) needs CUDA, their pictures are ray-traced. Here two arms
of boxes and cylinders (`body`) follow a closed-form inverse kinematics (`kinematics`, `planner`) and are drawn by
SAPIEN's rasteriser, which a software Vulkan runs as well. Tasks, checks, step limits, instructions and physics are
RoboTwin's; what it imports and does not use here, and what it would do otherwise, is replaced when the simulator's
process starts (`runtime`); no file of RoboTwin's is changed. Scores are RoboTwin's tasks and checks on another robot:
they are not compared with published ones.

Read by path in the simulator's process (see `envs.robotwin.server`): the standard library and numpy; SAPIEN and
RoboTwin where they run.
"""
