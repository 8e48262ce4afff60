"""Networks, their modules, and reading and writing of voices."""
