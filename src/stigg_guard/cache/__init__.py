"""What is known of customers: the snapshots of a process, and those that all processes share."""
