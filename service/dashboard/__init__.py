"""The web page. It runs in a process of its own and knows of the service what HTTP tells it."""
