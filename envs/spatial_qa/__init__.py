"""Procedural questions about images of the tabletop scenes, with ground truth from the simulator.

`questions.make_item(task, seed, knobs)` gives one item, `questions.make_items` a stream of them; `items` has the
blank image and the best constant answer. Importing this package imports neither mujoco nor GL.
"""
