"""How many replicas a load needs, on paper: a measured curve, a simulated replica, and what gives in first."""
