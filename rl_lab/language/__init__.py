"""The language side: questions, answers from engines, rewards, reinforcement learning, and its stages."""
