"""Policy gradients for flow policies: learning from success alone, without corrections."""
