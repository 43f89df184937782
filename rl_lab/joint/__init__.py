"""GRPO on the vision-language model and RPRO on the actions, together on one learner; see docs/joint.md."""
