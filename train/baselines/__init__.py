"""Every system of the benchmark behind one interface, one file per system."""
