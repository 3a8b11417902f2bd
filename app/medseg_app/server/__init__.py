"""The web application: one FastAPI app with the REST interface, the page, and everything that guards them."""
