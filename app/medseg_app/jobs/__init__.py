"""Jobs of the web application: a durable table, worker processes, one private folder each."""
