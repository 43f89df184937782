"""The action side: demonstrations, preference pairs, batches, training, and its stages."""
