"""The network: backbones, poolings, branches and heads, initial weights."""
