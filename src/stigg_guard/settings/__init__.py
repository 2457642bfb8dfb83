"""What settings may be: their readers, the URLs of ledgers and caches, where a Redis is."""
