"""What concerns the process itself: its threads, its forks, its log."""
