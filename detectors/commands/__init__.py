"""The commands of `lgm` that fit, ask and describe bundles, one a file."""
