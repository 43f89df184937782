"""What the models cost and whether they are right on a GPU, in one command that loses one row to a fault, never all.

Every check runs in a process of its own (`process`), with a time limit, and hands over row by row; the table (`table`)
is written anew after each. `checks` names them all. Nothing here imports more than torch, transformers and what those
need.
"""
