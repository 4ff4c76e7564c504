"""Thin scripts over the library: flags become a configuration."""
