"""The subjects of a report, a file each: numbers for `summary.json`, sentences, terminal tables, and part of the page.

A page is estimates in tables (drawn where a template shows one, see `markup`), series in charts (`charts`), browsers of
pairs and rollouts, and films (`actions`).
"""
