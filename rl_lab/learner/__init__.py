"""The one learner and what lives beside it: the objectives' plans, their data, their optimisers."""
