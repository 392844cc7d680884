"""The paper's claims: a file each, tables in, verdict and figure out; the registry, and every verdict again."""
