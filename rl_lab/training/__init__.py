"""Loops of training: objectives times feeds, with examinations, guards, alarms and checkpoints as their parts."""
