"""What is asked of workers: collections, rollouts, evaluations, teachers."""
