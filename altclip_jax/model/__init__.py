"""The network: pure linen."""
