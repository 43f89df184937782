"""Learned rewards of episodes and of action chunks, after NORA-1.5 (arXiv:2511.14659) and common practice.

success      does the end of an episode look like a success                         `networks.FrameScore`
progress     how soon will this end in success                                      `networks.FrameScore`
world_model  how near to the goal does a chunk lead, in a latent space of its own   `networks.WorldModel`
deviation    how far is a chunk from what the expert would do                       `ranking.expert_deviation`
"""
