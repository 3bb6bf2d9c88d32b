"""Training of the embedded model; a checkout has it, the published pack does not."""
