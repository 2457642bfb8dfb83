"""The requests that are under way."""

under_way = 0
