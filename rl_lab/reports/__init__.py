"""What a run says, read from its folder alone (no torch, no simulator).

`run` loads the folder as typed rows; `estimates` is one table of all that was measured, each number with its interval;
`summary` puts together what each file of `pages` says of its subject.
"""
