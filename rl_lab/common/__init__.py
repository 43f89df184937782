"""What every part stands on: errors, files and typed reading, seeds, statistics, the machine, the terminal."""
