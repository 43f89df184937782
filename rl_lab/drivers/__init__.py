"""What the driver does in each kind of stage: what it asks of workers and learners, and what it leaves."""
