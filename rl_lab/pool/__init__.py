"""The curriculum pool: its store and the commands that look into it (`python -m rl_lab.pool`)."""
