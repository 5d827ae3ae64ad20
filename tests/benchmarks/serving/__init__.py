"""`lgm serve` beside the servers one would pick instead: the same network, decoding, answers and machine."""
