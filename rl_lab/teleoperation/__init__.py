"""Corrections by a person: keys move the arms from a rolled-back failure on, in a page on this machine."""
