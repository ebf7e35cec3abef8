"""Tasks: the data, the head and the metric of each benchmark."""
