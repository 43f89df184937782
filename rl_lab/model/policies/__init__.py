"""Policies beside the released architecture: `algos.policy.Policy` in checkpoint folders of their own kind."""
