"""What is asked of engines and simulators: rollout groups, evaluations, teachers, collected episodes."""
