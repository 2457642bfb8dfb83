"""What the pages and answers of all frameworks share."""
