"""Each server's own way of serving the same work; run in an environment of their own, see rivals.txt."""
