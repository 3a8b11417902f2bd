"""Archives of a hospital: query, retrieve, send, and a listener that segments what it is sent."""
